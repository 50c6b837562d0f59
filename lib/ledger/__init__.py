"""What a paper claims, as data, and what becomes of it: schema, rules, statistics, verdicts, evidence."""
