"""DeepSpeed and processes."""
