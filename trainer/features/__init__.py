"""Tokens of frozen encoders, kept beside the shards: written once, used by every run that they fit."""
