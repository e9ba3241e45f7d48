"""One prompt source read to its end: prompts as a table, bad rows apart, exact repeats noted."""

from __future__ import annotations

import logging
from collections import Counter
from dataclasses import dataclass

import pyarrow as pa

from prefloop.data.config import Columns, PromptsConfig, PromptSource
from prefloop.data.errors import InputError
from prefloop.data.hashing import content_id, prompt_id
from prefloop.data.prompts.ignored_columns import IgnoredColumns
from prefloop.data.prompts.odd_prompts import OddPrompts
from prefloop.data.prompts.prompt_rows import LAST_TURN, Prompt, parse_row, prompt_columns, row_id
from prefloop.data.prompts.row_template import is_template
from prefloop.data.quarantine import BadRow, quarantine_table
from prefloop.data.schemas import PROMPT
from prefloop.data.sources.files import read_rows
from prefloop.data.sources.rows import RawRow, bad
from prefloop.data.utf8 import listed

logger = logging.getLogger(__name__)

_CHUNK = 10_000
"""Rows gathered as Python objects before they become Arrow, which is much smaller."""
_OTHERS = ("id", "reference", "system", "tools", "rubric")
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


def read_source(
    config: PromptsConfig, source: PromptSource, key: str, first: dict[str, str]
) -> SourceRows:
    """Read ``source``, which stands in the config at ``key``.

    ``first`` maps the contents of earlier prompts, also of other sources, to their ids; those read
    here are added.

    Raises ``InputError`` for a source that cannot be read, for configured columns that no row
    has, and with ``on_bad_row: fail`` for the first bad row.
    """
    found, ignored = _FoundColumns(source.columns, key), IgnoredColumns(source.columns, key)
    odd = OddPrompts(source.columns, key)
    notes: Counter[str] = Counter()
    ids = _Ids(source.columns.id)
    tables = [PROMPT.empty_table()]
    pending: list[Prompt] = []
    bad_rows: list[BadRow] = []
    repeats: dict[int, str] = {}
    read = prompts = 0
    for row in read_rows(source):
        read += 1
        prompt: Prompt | BadRow
        if isinstance(row, BadRow):
            prompt = row
        else:
            found.look(row)
            ignored.look(row.fields)
            prompt = parse_row(row, source.columns, max_chars=config.max_chars, notes=notes)
            if not isinstance(prompt, BadRow):
                content = _content(prompt)
                prompt = ids.check(row, content) or prompt
            if not isinstance(prompt, BadRow):
                odd.look(row.fields, prompt)
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
    ignored.warn()
    odd.warn()
    # Who writes `last_turn: drop` knows it.
    if notes[LAST_TURN] and LAST_TURN not in source.columns.model_fields_set:
        logger.warning(
            "%s: %s conversations end in an assistant's turn, which is left out: set "
            "%s.columns.last_turn to reference where judges are to take it as known to be good, or "
            "to drop where it is not wanted",
            key,
            f"{notes[LAST_TURN]:,}",
            key,
        )
    tables.append(pa.Table.from_pylist(pending, PROMPT))
    return SourceRows(
        pa.concat_tables(tables), quarantine_table("prompts", bad_rows), repeats, read
    )


def _content(prompt: Prompt) -> str:
    """What exact repeats have in common: the id they have without space at the ends of turns."""
    turns = prompt["messages"]
    stripped = [{**turn, "content": turn["content"].strip()} for turn in turns]
    if stripped == turns:
        return str(prompt["prompt_id"])
    content = prompt_id(stripped)
    more = (prompt["tools"], prompt["turns"])
    return content if more == (None, None) else content_id(content, *(one or "" for one in more))


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
        templated = is_template(columns.prompt_column)
        self._prompt_missing = not templated
        others = [(key, getattr(columns, key)) for key in _OTHERS]
        others += [(f"metadata.{n}", name) for n, name in enumerate(columns.metadata or ())]
        if templated:
            others += [("prompt", name) for name in prompt_columns(columns)]
        self._others_missing = [(key, name) for key, name in others if name is not None]
        self._names: dict[str, None] = {}
        self._rows = 0

    def look(self, row: RawRow) -> None:
        """Note the columns of ``row``. Raises ``InputError`` after too many without a prompt."""
        if not self._prompt_missing and not self._others_missing:
            return
        self._rows += 1
        self._names |= dict.fromkeys(row.fields)
        of_prompt = (self._columns.prompt_column, self._columns.messages_column)
        if any(name in row.fields for name in of_prompt):
            self._prompt_missing = False
        self._others_missing = [
            (key, name) for key, name in self._others_missing if name not in row.fields
        ]
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
                f"{self._key}: no row has the column {self._columns.prompt_column!r} or "
                f"{self._columns.messages_column!r}; {found}: set {columns}.prompt or "
                f"{columns}.messages to one of them"
            )
        for key, name in self._others_missing:
            raise InputError(
                f"{self._key}: no row has the column {name!r} of {columns}.{key}; {found}: "
                "name one of them, or leave the key out"
            )
