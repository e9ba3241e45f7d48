"""Files are read before they go anywhere: where does one hold a secret or personal data?"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from prefloop.pipeline.publish.sensitive import masked, sensitive_parts

MOST_NAMED = 1_000
"""So many are named one by one; the rest is counted."""
_WORDS_OF_A_TOKENIZER = ("tokenizer.json", "vocab.json", "vocab.txt", "merges.txt")
"""What a tokenizer learned, which is no text of anybody's."""
_READ = {".md", ".json", ".jinja", ".txt", ".yaml", ".jsonl"}


@dataclass(frozen=True)
class SensitiveFind:
    """One place with something that should perhaps not be shared."""

    file: str
    row: int | None
    """Row of a table, or line of a text, from 1."""
    field: str | None
    """Column of a table."""
    kind: str
    part: str
    """The beginning of what was found."""

    def __str__(self) -> str:
        row = "" if self.row is None else f":{self.row}"
        column = f" {self.field}" if self.field else ""
        return f"{self.file}{row}{column}: {self.kind} {self.part}"


@dataclass
class SensitiveFinds:
    """All places, with the first of them named."""

    kinds: Counter[str] = field(default_factory=Counter)
    named: list[SensitiveFind] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {"kinds": dict(self.kinds), "named": [asdict(one) for one in self.named]}


def look_through(folder: Path) -> SensitiveFinds:
    """Read every table and text in ``folder``; weights and a tokenizer's words are none."""
    finds = SensitiveFinds()
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.name in _WORDS_OF_A_TOKENIZER or not path.is_file():
            continue
        for row, column, text in _texts(path):
            for kind, part in sensitive_parts(text):
                finds.kinds[kind] += 1
                if len(finds.named) < MOST_NAMED:
                    finds.named.append(SensitiveFind(name, row, column, kind, masked(part)))
    return finds


def _texts(path: Path) -> Iterator[tuple[int | None, str | None, str]]:
    """The texts of a file with their row and column."""
    if path.suffix == ".parquet":
        yield from _cells(path)
    elif path.suffix == ".html":
        page = _PageText()
        page.feed(path.read_text(encoding="utf-8", errors="replace"))
        page.close()
        yield from page.found
    elif path.suffix in _READ:
        with path.open(encoding="utf-8", errors="replace") as lines:
            for number, line in enumerate(lines, start=1):
                yield number, None, line


def _cells(path: Path) -> Iterator[tuple[int, str, str]]:
    number = 0
    with pq.ParquetFile(path) as opened:
        for batch in opened.iter_batches(1_000):
            for row in batch.to_pylist():
                number += 1
                for column, value in row.items():
                    for text in dict.fromkeys(_strings(value)):
                        yield number, column, text


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
        if value[:1] in ("{", "[") and "\\u" in value:  # JSON that writes "@" as "\u0040"
            try:
                inner = json.loads(value)
            except (ValueError, RecursionError):
                return
            yield from _strings(inner)
    elif isinstance(value, dict):
        yield from _strings_of(value.values())
    elif isinstance(value, list):
        yield from _strings_of(value)


def _strings_of(values: Iterable[Any]) -> Iterator[str]:
    for value in values:
        yield from _strings(value)


class _PageText(HTMLParser):
    """What a reader of a page sees, without drawings and style sheets: their numbers are none of
    anybody."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.found: list[tuple[int | None, str | None, str]] = []
        self._unseen = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:  # noqa: ARG002
        self._unseen += tag in ("svg", "style", "script")

    def handle_endtag(self, tag: str) -> None:
        self._unseen -= tag in ("svg", "style", "script")

    def handle_data(self, data: str) -> None:
        if self._unseen <= 0 and data.strip():
            self.found.append((self.getpos()[0], None, data))
