"""Stage 3: where in a sentence the best features fire."""
