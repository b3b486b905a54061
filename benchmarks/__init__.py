"""Benchmarks: each checks that its reference gives our output, then times both in one run."""
