"""A row of a prompt source as it was read: usable so far, or not."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
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


def counted(rows: Iterable[RawRow | BadRow]) -> Iterator[RawRow | BadRow]:
    """``rows`` with the number that each has among the rows of its source, bad ones included: blank
    lines, a header and line breaks in quotes are no rows."""
    numbers: Counter[str] = Counter()
    for row in rows:
        numbers[row.source] += 1
        yield replace(row, row=numbers[row.source])


def finite(value: Any) -> Any:
    """``value`` with null for the numbers that JSON does not have."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): finite(item) for key, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        return [finite(item) for item in value]
    return value


def without_type(value: Any) -> str:
    """What JSON has no type for (dates, decimals, bytes) as text."""
    return value.decode("utf-8", "backslashreplace") if isinstance(value, bytes) else str(value)


def text_or_number(value: Any) -> str | None:
    """``value`` where it is text, or a number as text (42 and 42.0 are "42"); None for all else,
    also for what pandas writes for a missing number."""
    if isinstance(value, str):
        return value
    if isinstance(value, bool) or not isinstance(value, int | float | Decimal):
        return None
    if isinstance(value, int):
        return str(value)
    if not math.isfinite(value):
        return None
    return str(int(value)) if value == int(value) else str(value)
