"""Keywords and markers of IFEval, which its rules read as regular expressions.

Plain words, as all of IFEval's own are, are searched for here. What repeats or chooses, out of
somebody's file, is searched for in a process that may be late.
"""

from __future__ import annotations

import re

from prefloop.labelers.scorers.check_types import ConstraintError
from prefloop.labelers.scorers.regex_search import PatternError, RegexSearch

_PLAIN = re.compile(r"[^\\^$*+?{}\[\]|()]*")
"""Patterns that match their own length of text or nothing (a dot stands for any character)."""
_SEARCH = RegexSearch()


def occurrences(
    pattern: str, text: str, *, before: str = "", after: str = "", any_case: bool = True
) -> int:
    """How often ``pattern`` is found in ``text``, between ``before`` and ``after``.

    Raises :class:`ConstraintError` where it is no pattern, or takes too long.
    """
    if not pattern.strip():
        raise ConstraintError("a word to look for is empty")
    whole = before + pattern + after
    if _PLAIN.fullmatch(pattern):
        return len(re.findall(whole, text, re.IGNORECASE if any_case else 0))
    try:
        return _SEARCH.count(f"(?i:{whole})" if any_case else whole, text)
    except PatternError as error:
        raise ConstraintError(f"the word {pattern!r}, read as a pattern, {error}") from None
