"""The training framework that every experiment folder uses."""
