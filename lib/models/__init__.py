"""Networks: one module per family; no training, no files beyond weights."""
