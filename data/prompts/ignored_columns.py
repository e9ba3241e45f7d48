"""Columns that look like a part of the prompt, are filled, and that the mapping does not read."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping
from typing import Any

from prefloop.data.config import Columns
from prefloop.data.prompts.prompt_rows import prompt_columns
from prefloop.data.prompts.row_template import is_template
from prefloop.data.sources.likely_columns import (
    PICTURES,
    SYSTEMS,
    TEXTS,
    TOOLS,
    TURNS,
    is_filled,
)
from prefloop.data.utf8 import shown

logger = logging.getLogger(__name__)

_NAMES = frozenset((*TEXTS, *SYSTEMS, *TOOLS, *TURNS, *PICTURES))


class IgnoredColumns:
    """Counts the rows in which such columns hold something, and says so in the end."""

    def __init__(self, columns: Columns, key: str) -> None:
        """``key``: where the source stands in the config."""
        self._columns = columns
        self._key = key
        self._read = {
            *prompt_columns(columns), columns.messages_column, columns.reference, columns.id,
            columns.system, columns.tools, columns.rubric, *(columns.metadata or ()),
        }  # fmt: skip
        self._filled: Counter[str] = Counter()
        self._rows = 0

    def look(self, fields: Mapping[str, Any]) -> None:
        """Note the columns of a row."""
        self._rows += 1
        for name, value in fields.items():
            kind = name.lower()
            if kind not in _NAMES or name in self._read or not is_filled(value):
                continue
            if kind not in TURNS or not isinstance(value, int | float):  # a number of turns
                self._filled[name] += 1

    def warn(self) -> None:
        """One warning for each column that was ignored and holds something."""
        for name, rows in self._filled.items():
            logger.warning(
                "%s: the column %r holds something in %s of %s rows, and no prompt has it: %s, or "
                "name it in %s.columns.metadata if that is meant",
                self._key,
                shown(name),
                f"{rows:,}",
                f"{self._rows:,}",
                self._remedy(name),
                self._key,
            )

    def _remedy(self, name: str) -> str:
        columns, kind = f"{self._key}.columns", name.lower()
        if kind in PICTURES:
            return "prefloop reads text only, so leave such rows out"
        if kind in TOOLS:
            return f"set {columns}.tools: {name}"
        if kind in SYSTEMS:
            return f"set {columns}.system: {name}"
        if kind in TURNS:
            return f"set {columns}.messages: {name}, where it holds whole conversations"
        prompt = self._columns.prompt_column
        before = prompt if is_template(prompt) else _in_template(prompt)
        return f'set {columns}.prompt: "{before}\\n\\n{_in_template(name)}"'


def _in_template(name: str) -> str:
    return f"{{{{ {name} }}}}" if name.isidentifier() else f"{{{{ row['{name}'] }}}}"
