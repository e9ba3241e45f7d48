"""Preference datasets in the form that other projects read."""
