"""Marks that are no marks: those that a text speaks about."""

from __future__ import annotations

_QUOTES = "\"'`"
_BEFORE_QUOTES = f"([{{:={_QUOTES}"


def is_quoted(before: str, behind: str) -> bool:
    """Whether a mark between these, two characters on each side, is in quotes and so a word about
    thoughts: one that begins, and the same one that ends. A thought that ends in a quotation may
    come before an answer that begins with one."""
    quote = before[-1:]
    if not quote or quote not in _QUOTES or behind[:1] != quote:
        return False
    begins = len(before) < 2 or before[0].isspace() or before[0] in _BEFORE_QUOTES
    return begins and not behind[1:].isalnum()
