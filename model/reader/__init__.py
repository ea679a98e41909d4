"""Readers of the words of pages: Hi-VT5, in which tokens in front of a page stand for it once it is read."""
