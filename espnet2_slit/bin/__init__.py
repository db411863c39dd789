"""Command line entries: the only modules that print and parse arguments."""
