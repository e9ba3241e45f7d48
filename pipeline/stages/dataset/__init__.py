"""The files of a run's dataset: where they are, and what is in them."""
