"""PNP-VQA: captions of where a question looks, and answers read from them."""
