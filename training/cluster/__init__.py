"""Training in processes on a Ray cluster."""
