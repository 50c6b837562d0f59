"""One module per chapter: what is compared with what, and the numbers that a rule wants."""
