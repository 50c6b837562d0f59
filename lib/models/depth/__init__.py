"""Depth from one picture, learned from video: networks, what they are trained by, published weights."""
