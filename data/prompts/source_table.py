"""One prompt source read to its end: prompts as a table, bad rows apart, exact repeats noted."""

from __future__ import annotations

from dataclasses import dataclass

import pyarrow as pa

from prefloop.data.config import Columns, PromptsConfig, PromptSource
from prefloop.data.errors import InputError
from prefloop.data.hashing import prompt_id
from prefloop.data.prompts.prompt_rows import Prompt, parse_row, row_id
from prefloop.data.quarantine import BadRow, quarantine_table
from prefloop.data.schemas import PROMPT
from prefloop.data.sources.files import read_rows
from prefloop.data.sources.rows import RawRow, bad
from prefloop.data.utf8 import listed

_CHUNK = 10_000
"""Rows gathered as Python objects before they become Arrow, which is much smaller."""
_ROWS_TO_JUDGE_COLUMNS = 10_000
"""So many rows without the prompt's column, and the mapping is taken to be wrong."""


@dataclass(frozen=True)
class SourceRows:
    """``read`` = rows of ``prompts`` (schema PROMPT) + ``quarantine`` (schema QUARANTINE).

    ``repeats`` maps a row of ``prompts`` to the id of the earlier prompt that it repeats.
    """

    prompts: pa.Table
    quarantine: pa.Table
    repeats: dict[int, str]
    read: int


def read_source(config: PromptsConfig, source: PromptSource, key: str) -> SourceRows:
    """Read ``source``, which stands in the config at ``key``.

    Raises ``InputError`` for a source that cannot be read, for configured columns that no row
    has, and with ``on_bad_row: fail`` for the first bad row.
    """
    found = _FoundColumns(source.columns, key)
    ids = _Ids(source.columns.id)
    tables = [PROMPT.empty_table()]
    pending: list[Prompt] = []
    bad_rows: list[BadRow] = []
    repeats: dict[int, str] = {}
    first: dict[str, str] = {}
    read = prompts = 0
    for row in read_rows(source):
        read += 1
        prompt: Prompt | BadRow
        if isinstance(row, BadRow):
            prompt = row
        else:
            found.look(row)
            prompt = parse_row(row, source.columns, max_chars=config.max_chars)
            if not isinstance(prompt, BadRow):
                content = _content(prompt)
                prompt = ids.check(row, content) or prompt
        if isinstance(prompt, BadRow):
            if config.on_bad_row == "fail":
                raise InputError(f"{prompt} (prompts.on_bad_row is fail)")
            bad_rows.append(prompt)
            continue
        if content in first:
            repeats[prompts] = first[content]
        else:
            first[content] = prompt["prompt_id"]
        prompts += 1
        pending.append(prompt)
        if len(pending) == _CHUNK:
            tables.append(pa.Table.from_pylist(pending, PROMPT))
            pending.clear()
    found.end()
    tables.append(pa.Table.from_pylist(pending, PROMPT))
    return SourceRows(
        pa.concat_tables(tables), quarantine_table("prompts", bad_rows), repeats, read
    )


def _content(prompt: Prompt) -> str:
    """What exact repeats have in common: the id they have without space at the ends of turns."""
    turns = prompt["messages"]
    stripped = [{**turn, "content": turn["content"].strip()} for turn in turns]
    return str(prompt["prompt_id"]) if stripped == turns else prompt_id(stripped)


class _Ids:
    """The explicit ids so far, each with the content it stands for."""

    def __init__(self, column: str | None) -> None:
        self._column = column
        self._content: dict[str, str] = {}

    def check(self, row: RawRow, content: str) -> BadRow | None:
        """What is wrong with the id of ``row``, if anything."""
        if self._column is None:
            return None
        name = row_id(row, self._column)
        if isinstance(name, BadRow):
            return name
        if self._content.setdefault(name, content) == content:
            return None
        detail = f"an earlier row has the id {name!r} and another prompt: make the ids unique"
        return bad(row, self._column, "duplicate_id", detail)


class _FoundColumns:
    """Whether the configured columns are anywhere in the source."""

    def __init__(self, columns: Columns, key: str) -> None:
        self._columns = columns
        self._key = key
        self._prompt_missing = True
        others = {"id": columns.id, "reference": columns.reference}
        others |= {f"metadata.{n}": name for n, name in enumerate(columns.metadata or ())}
        self._others_missing = {k: name for k, name in others.items() if name is not None}
        self._names: dict[str, None] = {}
        self._rows = 0

    def look(self, row: RawRow) -> None:
        """Note the columns of ``row``. Raises ``InputError`` after too many without a prompt."""
        if not self._prompt_missing and not self._others_missing:
            return
        self._rows += 1
        self._names |= dict.fromkeys(row.fields)
        if self._columns.prompt in row.fields or self._columns.messages in row.fields:
            self._prompt_missing = False
        self._others_missing = {
            key: name for key, name in self._others_missing.items() if name not in row.fields
        }
        if self._prompt_missing and self._rows == _ROWS_TO_JUDGE_COLUMNS:
            self.end()

    def end(self) -> None:
        """Raise ``InputError`` for a configured column that no row had."""
        if not self._rows:
            return
        found = f"columns found: {listed(self._names) or 'none'}"
        columns = f"{self._key}.columns"
        if self._prompt_missing:
            raise InputError(
                f"{self._key}: no row has the column {self._columns.prompt!r} or "
                f"{self._columns.messages!r}; {found}: set {columns}.prompt or "
                f"{columns}.messages to one of them"
            )
        for key, name in self._others_missing.items():
            raise InputError(
                f"{self._key}: no row has the column {name!r} of {columns}.{key}; {found}: "
                "name one of them, or leave the key out"
            )
