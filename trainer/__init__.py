"""The only package that sees everything: configuration, engine, loop, metrics, command line."""
