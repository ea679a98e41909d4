"""Modules and what they compute from a batch: encoders, fusion, losses."""

DISTRIBUTION = "duoflow"
"""Whose package this is, for `import duoflow` to see."""
