"""Trainings on TRL: inputs, policies, one session, its trainers, the methods."""
