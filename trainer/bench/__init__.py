"""What `duoflow bench` measures: one table and one JSON each."""
