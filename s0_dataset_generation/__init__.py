"""Stage 0: sentences labelled 0-3 for a trait."""
