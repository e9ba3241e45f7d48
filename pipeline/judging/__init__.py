"""Judging the judges: gold labels, agreement, calibration, and people who look."""
