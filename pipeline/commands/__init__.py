"""The command line, a module for each kind of thing that it is about."""
