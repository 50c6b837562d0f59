"""Quantisers, and what trains or measures with them."""
