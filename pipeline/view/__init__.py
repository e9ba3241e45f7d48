"""Pairs to read in a browser: one page that holds some of them, or a server for all."""
