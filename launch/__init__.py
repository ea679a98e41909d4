"""Starts training processes. Standard library only; imports none of the other packages."""
