"""Answers that someone already has: every set of answers in a source, in any layout."""

from __future__ import annotations

import glob
from collections.abc import Collection, Iterator

from prefloop.data.config import PromptSource
from prefloop.data.errors import InputError
from prefloop.data.preferences.answer_sets import AnswerSet, parse_set
from prefloop.data.preferences.gathered import Gatherer
from prefloop.data.preferences.labels import SeenLabels
from prefloop.data.preferences.layouts import (
    GATHERED,
    PreferenceColumns,
    label_columns,
    steps_in,
)
from prefloop.data.preferences.reader import files_alone
from prefloop.data.preferences.row_layouts import RowLayouts
from prefloop.data.preferences.unread_columns import UnreadColumns
from prefloop.data.preferences.unread_ratings import UnreadRatings
from prefloop.data.quarantine import BadRow
from prefloop.data.sources.files import SourceRow, read_rows
from prefloop.data.sources.rows import bad
from prefloop.data.utf8 import listed

_ROWS_TO_JUDGE_COLUMNS = 10_000
"""So many rows without a known layout, and the mapping is taken to be wrong."""


def read_answer_sets(
    source: PromptSource, columns: PreferenceColumns | None = None
) -> Iterator[AnswerSet | BadRow]:
    """The sets of answers in ``source``, and its rows without any.

    Layouts are those of ``read_preferences``, and besides them answers of which nothing says which
    is better. Raises ``InputError`` with one line for a source that cannot be read or has no known
    layout, and for labels that may mean one thing or another.
    """
    layouts = RowLayouts(columns, unlabelled=True)
    labels, gatherer, unread = SeenLabels(), Gatherer(), UnreadRatings(source.path)
    left = UnreadColumns()
    read, known = 0, False
    for row in _rows(source, label_columns(columns)):
        read += 1
        if isinstance(row, BadRow):
            yield row
            continue
        layout = layouts.of(row.fields)
        if layout is None:
            if not known and read >= _ROWS_TO_JUDGE_COLUMNS:
                break
            said = f"no answers in it: it has only {listed(row.fields) or 'nothing'}"
            yield bad(row, None, "missing_column", f"{said}: name the columns with `columns`")
            continue
        known = True
        unread.look(row.fields, layout)
        left.look(row, layout)
        if layout.kind in GATHERED:
            gatherer.add(row, layout)
            continue
        layout.look(labels, row.fields)
        yield parse_set(row, layout)
    unread.warn()
    left.warn(source.path)
    if read and not known and (steps := steps_in(layouts.seen)):
        raise InputError(f"{source.path}: {steps}; columns found: {listed(layouts.seen)}")
    if read and not known and layouts.seen:
        raise InputError(
            f"{source.path}: no row has a known layout; columns found: {listed(layouts.seen)}: "
            "name them with `columns`, e.g. prompt=NAME,a=NAME,b=NAME,label=NAME or "
            "prompt=NAME,answers=NAME,ratings=NAME"
        )
    yield from gatherer.all()
    labels.check(
        source.path,
        "say which with `labels` in sample.from, or --labels: a=1,b=0 (or a=0,b=1, or "
        "a=1,b=2,tie=0)",
    )


def _rows(source: PromptSource, classes: Collection[str]) -> Iterator[SourceRow]:
    files = files_alone(source)
    if not files:
        yield from read_rows(source, classes=classes)
        return
    left = source.limit
    for file in files:
        part = PromptSource(path=glob.escape(str(file)), format="parquet", limit=left)
        rows = 0
        for row in read_rows(part, classes=classes):
            rows += 1
            yield row
        if left is not None:
            left -= rows
            if left <= 0:
                return
