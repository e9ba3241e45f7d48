"""Files that are there once and whole."""
