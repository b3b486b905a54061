"""What several stages need and no stage owns: standard library and NumPy only.

Nothing in this package knows what a sentence, a feature or a model is.
"""
