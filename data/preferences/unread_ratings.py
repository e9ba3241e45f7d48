"""Ratings that are there and say nothing: ``8/10``, ``4,5``, ``good``.

Answers whose ratings cannot be read are answers of which nothing is said. Where that is so because
of how the ratings are written, it is to be heard.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from typing import Any

from prefloop.data.preferences.layouts import Layout
from prefloop.data.preferences.pair_rows import is_null
from prefloop.data.preferences.ratings import OF_ANSWERS, as_number, rating_in
from prefloop.data.utf8 import is_blank, shown

logger = logging.getLogger(__name__)

_FLAGS = ("true", "false")
_NOTHING = ("n/a", "na", "none", "null", "nan")
"""How those who rate say that they did not."""


class UnreadRatings:
    """Counts them, row by row, and says so in the end."""

    def __init__(self, source: str) -> None:
        """``source``: what the warning calls the data."""
        self._source = source
        self._rows = 0
        self._first: tuple[str, Any] | None = None

    def look(self, fields: Mapping[str, Any], layout: Layout) -> None:
        """Take in the ratings of a row."""
        if layout.kind not in ("completions", "single"):
            return
        unread = next((one for one in _ratings(fields, layout) if _is_unread(one[1])), None)
        if unread is not None:
            self._rows += 1
            self._first = self._first or unread

    def warn(self) -> None:
        """One warning, where there were any."""
        if self._first is not None:
            name, value = self._first
            logger.warning(
                "%s: %s rows have ratings in %r that are no numbers (%s), so nothing is known of "
                "these answers: write each as one number",
                self._source,
                f"{self._rows:,}",
                shown(name),
                shown(repr(value)[:60]),
            )


def _ratings(fields: Mapping[str, Any], layout: Layout) -> Iterator[tuple[str, Any]]:
    """What a row says of its answers, beside them or in them, each with the name it has there."""
    if layout.ratings is not None:
        value = fields.get(layout.ratings)
        yield from (
            (layout.ratings, one) for one in (value if isinstance(value, list) else [value])
        )
        return
    answers = fields.get(layout.a)
    for answer in answers if isinstance(answers, list) else []:
        if isinstance(answer, Mapping) and rating_in(answer) is None:
            yield from ((f"{layout.a}.{key}", answer.get(key)) for key in OF_ANSWERS)


def _is_unread(value: Any) -> bool:
    if is_null(value) or isinstance(value, bool):
        return False
    if isinstance(value, str):
        word = value.strip().casefold()
        if is_blank(value) or word in _FLAGS or word in _NOTHING or word.startswith("["):
            return False
    return as_number(value) is None
