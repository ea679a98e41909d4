"""Modules and what they compute from a batch: encoders, fusion, losses."""
