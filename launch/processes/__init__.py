"""Ranks of this machine: their records, their memory, what starts and ends them."""
