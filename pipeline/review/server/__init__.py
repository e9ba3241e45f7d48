"""A real Argilla server on this machine, in a virtual environment of its own."""
