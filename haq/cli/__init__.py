"""The command line: one command a file; ``main`` puts them together."""
