"""Where a question looks, and what a second stream sees."""
