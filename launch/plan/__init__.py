"""What is started where, and what may travel there: pure, and for a remote shell to read."""
