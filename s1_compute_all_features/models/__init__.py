"""Models that come in another form than transformers loads: fetched, read, and written plainly."""
