"""Estimates with their intervals: agreement, calibration, win rates, accuracy, diversity."""
