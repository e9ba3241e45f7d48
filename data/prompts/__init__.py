"""Prompts in: rows become prompts, bad ones are quarantined, repeats and overlaps dropped."""
