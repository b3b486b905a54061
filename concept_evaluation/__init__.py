"""How well something tells a concept: metrics, baselines, bootstrap intervals and splits.

Arrays in, numbers out. Nothing in this package opens a file.
"""
