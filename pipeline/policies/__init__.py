"""Policies outside of a run: trained alone, compared with one another."""
