"""Text and vision towers over pretrained modules, and their tokenizers, adapters and checkpoints."""
