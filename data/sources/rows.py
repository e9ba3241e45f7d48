"""A row of a prompt source as it was read: usable so far, or not."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class RawRow:
    """Fields of one row. ``row`` counts from 1; in line-based files it is the line."""

    source: str
    row: int
    fields: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class BadRow:
    """A row that is no prompt. ``reason`` is one word for counting, ``detail`` says what is wrong
    and what to do, ``content`` is the row as read (bytes that are no text backslash-escaped)."""

    source: str
    row: int
    field: str | None
    reason: str
    detail: str
    content: str

    def __str__(self) -> str:
        field = f", field {self.field!r}" if self.field else ""
        return f"{self.source}, row {self.row}{field}: {self.reason}: {self.detail}"


def bad(raw: RawRow, field: str | None, reason: str, detail: str) -> BadRow:
    """The bad row that ``raw`` is, its fields as JSON in ``content``."""
    try:
        content = json.dumps(raw.fields, ensure_ascii=False, default=str)
    except RecursionError:
        content = f"nested too deeply to show; fields: {', '.join(raw.fields)}"
    return BadRow(raw.source, raw.row, field, reason, detail, escaped(content))


def escaped(text: str) -> str:
    """``text`` with surrogates backslash-escaped: those that stand for undecodable bytes as
    ``\\xNN``, others as ``\\uNNNN``. Text without surrogates is returned as it is."""
    try:
        return text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    except UnicodeEncodeError:
        return text.encode("utf-8", "backslashreplace").decode("utf-8")


def is_text(text: str) -> bool:
    """Whether ``text`` can be written as UTF-8, that is, holds no lone surrogate."""
    if text.isascii():
        return True
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True
