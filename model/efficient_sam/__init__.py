"""EfficientSAM, under its official key names."""
