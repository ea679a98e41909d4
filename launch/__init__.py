"""Starts training processes. Standard library only; imports none of the other packages."""

DISTRIBUTION = "duoflow"
"""Whose package this is, for `import duoflow` to see."""
