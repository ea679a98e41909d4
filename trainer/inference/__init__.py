"""An exported model at work."""
