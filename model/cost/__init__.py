"""What a training step costs: operations and bytes, known before it is taken."""
