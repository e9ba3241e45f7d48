"""A policy on disk and what it says: checkpoints, averages, log-probabilities, held-out rewards."""
