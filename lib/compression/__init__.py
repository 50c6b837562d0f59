"""Rank selection by variational Bayes, Tucker decompositions, and the replacement of layers by them."""
