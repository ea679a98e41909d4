"""Annotations and images in, shards out."""
