"""Preference datasets in, whatever their layout: one schema out, bad rows apart."""

from prefloop.data.preferences.labels import parse_labels
from prefloop.data.preferences.layouts import PreferenceColumns, named_columns, parse_columns
from prefloop.data.preferences.reader import PREFERENCE, PreferenceBatch, read_preferences

__all__ = [
    "PREFERENCE",
    "PreferenceBatch",
    "PreferenceColumns",
    "named_columns",
    "parse_columns",
    "parse_labels",
    "read_preferences",
]
