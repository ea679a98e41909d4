"""Annotations and bytes in, batches out: readers, tar shards, the order of an epoch, the loader."""

DISTRIBUTION = "duoflow"
"""Whose package this is, for `import duoflow` to see."""
