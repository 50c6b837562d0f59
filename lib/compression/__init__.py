"""Rank selection and tensor decompositions."""
