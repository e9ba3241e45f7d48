"""Rows that cannot be used: what is wrong with each, and the one table that they are kept in."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import pyarrow as pa

from prefloop.data.schemas import QUARANTINE
from prefloop.data.utf8 import escaped, shown


@dataclass(frozen=True, slots=True)
class BadRow:
    """A row that cannot be used. ``reason`` is one word for counting, ``detail`` says what is wrong
    and what to do, ``content`` is the row as read (bytes that are no text as surrogates)."""

    source: str
    row: int
    field: str | None
    reason: str
    detail: str
    content: str

    def __str__(self) -> str:
        field = f", field {shown(self.field)!r}" if self.field else ""
        said = f"{shown(self.source)}, row {self.row}{field}: {self.reason}"
        return f"{said}: {shown(self.detail)}"


def quarantine_table(stage: str, rows: Iterable[BadRow], *, round_index: int = 0) -> pa.Table:
    """``rows`` that failed in ``stage``, in their order: schema QUARANTINE.

    Whatever is no Unicode text in them is backslash-escaped, so that every row can be kept; so are
    control characters in what is said of a row, so that it can be shown.
    """
    found = [
        {
            "stage": stage,
            "round": round_index,
            "source": shown(row.source),
            "row": row.row,
            "field": None if row.field is None else shown(row.field),
            "reason": row.reason,
            "detail": shown(row.detail),
            "content": escaped(row.content),
        }
        for row in rows
    ]
    return pa.Table.from_pylist(found, QUARANTINE)
