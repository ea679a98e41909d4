"""Annotations and bytes in, batches out: readers, tar shards, the order of an epoch, the loader."""
