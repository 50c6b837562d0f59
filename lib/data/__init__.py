"""Data sets: one module per set, with its origin, licence and loader."""
