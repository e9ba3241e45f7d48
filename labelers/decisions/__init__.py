"""Which pairs are labelled, what is decided about each, and what drops it."""
