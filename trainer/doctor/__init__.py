"""`duoflow doctor`: what this machine can run, and what a recipe misses. Nothing is loaded and no network is asked."""
