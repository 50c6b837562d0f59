"""Networks that recommend: sequential ones, and the ranking model of a data centre."""
