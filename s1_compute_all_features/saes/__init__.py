"""Sparse autoencoders: training, and what a trained one is worth."""
