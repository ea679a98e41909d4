"""Shards in, micro-batches out."""
