"""The only package that sees everything: configuration, engine, loop, metrics, command line."""

DISTRIBUTION = "duoflow"
"""Whose package this is, for `import duoflow` to see."""
