"""Checks of preference pairs: pure functions on Arrow columns and on the hashes made of them."""
