"""A row of a prompt source as it was read: usable so far, or not."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from prefloop.data.quarantine import BadRow
from prefloop.data.utf8 import listed


@dataclass(frozen=True, slots=True)
class RawRow:
    """Fields of one row. ``row`` counts from 1; in line-based files it is the line."""

    source: str
    row: int
    fields: Mapping[str, Any]


def bad(raw: RawRow, field: str | None, reason: str, detail: str) -> BadRow:
    """The bad row that ``raw`` is, its fields as JSON in ``content``."""
    try:
        content = json.dumps(raw.fields, ensure_ascii=False, default=str)
    except RecursionError:
        content = f"nested too deeply to show; fields: {listed(raw.fields)}"
    return BadRow(raw.source, raw.row, field, reason, detail, content)
