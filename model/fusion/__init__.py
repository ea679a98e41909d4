"""Fusion encoders between two token streams."""
