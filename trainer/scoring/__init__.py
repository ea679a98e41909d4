"""Scores, pure: what papers and official scripts report."""
