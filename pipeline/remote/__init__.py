"""A run directory on an object store: worked on in a local copy, which is kept the same."""
