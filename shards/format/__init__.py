"""What a shard is."""
