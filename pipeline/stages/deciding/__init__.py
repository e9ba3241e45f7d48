"""Votes become decisions, some blocks at a time, here or on another machine."""
