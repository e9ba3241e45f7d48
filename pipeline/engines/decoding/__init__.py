"""Tokens out of a model of transformers: forward passes, draws, and whose turn it is."""
