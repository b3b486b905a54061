"""Stage 2: every feature ranked against the labels, with held-out evidence."""
