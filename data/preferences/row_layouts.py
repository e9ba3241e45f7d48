"""The layout of each row: rows of one source may use other names than their neighbours.

A table has every column in every row, and null where a row of JSON Lines would not have the key:
so a row whose prompt or answers are null is read by the columns that it does fill.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from prefloop.data.preferences.layouts import (
    GATHERED,
    Layout,
    PreferenceColumns,
    find_layout,
    single_of,
)
from prefloop.data.preferences.pair_rows import is_null
from prefloop.data.utf8 import is_blank


class RowLayouts:
    """Finds the layout of rows, one search for each set of names."""

    def __init__(self, own: PreferenceColumns | None = None, *, unlabelled: bool = False) -> None:
        """``unlabelled`` as for ``find_layout``."""
        self._own, self._unlabelled = own, unlabelled
        self._found: dict[tuple[str, ...], Layout | None] = {}
        self._singles: dict[tuple[str, ...], Layout] = {}
        self.seen: dict[str, None] = {}
        """The names of all rows so far, in their order."""

    def of(self, fields: Mapping[str, Any]) -> Layout | None:
        """The layout of a row with these fields, or None."""
        names = tuple(fields)
        if names not in self._found:
            self.seen |= dict.fromkeys(names)
        found = self._of(names, fields)
        ordered = self._unlabelled and found is not None and found.ordered
        if found is None or not ordered or not isinstance(fields.get(found.a), str):
            return found
        # Where a list has the best first, one text is no list: it is the one answer.
        return self._singles.setdefault(names, single_of(found, names))

    def _of(self, names: tuple[str, ...], fields: Mapping[str, Any]) -> Layout | None:
        layout = self._by(names)
        if layout is None or not lacks(fields, layout):
            return layout
        filled = self._by(tuple(name for name in names if not _is_missing(fields[name])))
        if filled is None or lacks(fields, filled) or (layout.prompt and not filled.prompt):
            return layout
        return filled

    def _by(self, names: tuple[str, ...]) -> Layout | None:
        if names not in self._found:
            self._found[names] = find_layout(names, self._own, unlabelled=self._unlabelled)
        return self._found[names]


def lacks(fields: Mapping[str, Any], layout: Layout) -> bool:
    """Whether a row has no prompt, or not both answers, in the columns of ``layout``."""
    if layout.kind in GATHERED and layout.kind != "single":
        return False
    no_prompt = bool(layout.prompt) and _all_missing(fields, layout.prompt)
    return no_prompt or any(_is_missing(fields.get(name)) for name in layout.answers)


def _all_missing(fields: Mapping[str, Any], names: Iterable[str]) -> bool:
    return all(_is_missing(fields.get(name)) for name in names)


def _is_missing(value: Any) -> bool:
    """Null, or what a format without null has for it."""
    if isinstance(value, str):
        return is_blank(value)
    return is_null(value) or (isinstance(value, list | dict) and not value)
