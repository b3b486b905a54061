"""Stage 5: classifiers trained, tested, checkpointed and compared."""
