"""Data of one's own, as it lies there: rows whose columns are guessed, images found by name, and a split by image."""
