"""From data of one's own to a recipe that runs: what is in the data, what follows from it, and the text."""
