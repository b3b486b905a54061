"""Stage 4: one dataset per classifier strategy."""
