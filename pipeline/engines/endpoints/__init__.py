"""Several servers behind one engine: who is asked next, how many at once, and who is left alone."""
