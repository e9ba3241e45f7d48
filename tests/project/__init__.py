"""Checks of the project itself: its house, docs, wheel, benchmarks; and the fuzz."""
