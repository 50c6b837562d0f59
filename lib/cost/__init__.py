"""What a network costs, by counting."""
