"""Shards behind a URL: copied whole into a bounded cache on this machine, and read there like any others."""
