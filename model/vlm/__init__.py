"""A vision-language model of transformers, its image read once for all questions about it."""
