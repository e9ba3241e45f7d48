"""Columns of pairs and answers that look like a part of the prompt, and that the layout does not
read: a question without its context, or without the picture that it is about."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from prefloop.data.preferences.layouts import Layout
from prefloop.data.sources.likely_columns import PICTURES, SYSTEMS, TEXTS, TOOLS, is_filled
from prefloop.data.sources.rows import RawRow
from prefloop.data.sources.tool_turns import tools_of
from prefloop.data.sources.turns import Unusable
from prefloop.data.utf8 import is_blank, shown

logger = logging.getLogger(__name__)

_ASKED = ("question", "query", "problem")
"""Beside an instruction, what it is about."""


class UnreadColumns:
    """Counts the rows in which such columns hold something that their prompts do not say too."""

    def __init__(self) -> None:
        self._names = frozenset((*_ASKED, *TEXTS, *SYSTEMS, *TOOLS, *PICTURES))
        self._watched: dict[tuple[int, tuple[str, ...]], list[str]] = {}
        self._layouts: list[Layout] = []
        """Kept, so that no other gets the place of one that is known."""
        self._prompt = ""
        self.rows: Counter[str] = Counter()
        self.first: dict[str, str] = {}
        """Where each is met first: ``source:row``."""

    def watched(self, names: Iterable[str], layout: Layout) -> list[str]:
        """Those of the columns ``names`` that are looked at."""
        key = (id(layout), tuple(names))
        if key not in self._watched:
            read = layout.columns
            self._layouts.append(layout)
            self._watched[key] = [
                name for name in key[1] if name.lower() in self._names and name not in read
            ]
        return self._watched[key]

    def look(self, raw: RawRow, layout: Layout) -> None:
        """Take in a row."""
        names = self.watched(raw.fields, layout)
        if not names:
            return
        self._prompt = self._prompt or "+".join(layout.prompt) or "NAME"
        prompt = layout.prompt or (layout.a,)
        said = "\n".join(_texts([raw.fields.get(name) for name in prompt]))
        for name in names:
            value = raw.fields[name]
            if isinstance(value, int | float) or not is_filled(value):
                continue
            if name == TOOLS[0] and _are_tools(value):
                continue
            texts = [text.strip() for text in _texts(value) if not is_blank(text)]
            if not texts or not all(text in said for text in texts):
                self.rows[name] += 1
                self.first.setdefault(name, f"{raw.source}:{raw.row}")

    def remedy(self, name: str) -> str:
        """What to do about the column ``name``."""
        kind = name.lower()
        if kind in PICTURES:
            return "prefloop reads text only, so leave such rows out"
        if kind in TOOLS:
            return "call it tools, and write a list of JSON schemas into it, each with a name"
        if kind in SYSTEMS:
            return "call it system"
        return f"make it a part of the prompt: --columns prompt={self._prompt}+{name}"

    def warn(self, source: str) -> None:
        """One warning for each column; ``source`` is what it calls the data."""
        for name, rows in self.rows.items():
            logger.warning(
                "%s: the column %r holds something in %s rows (first %s), and no prompt has it: %s",
                source,
                shown(name),
                f"{rows:,}",
                self.first[name],
                shown(self.remedy(name)),
            )


def _are_tools(value: Any) -> bool:
    try:
        return tools_of(value, TOOLS[0]) is not None
    except Unusable:
        return False


def _texts(value: Any) -> Iterator[str]:
    """All texts within ``value``, but not the names of its keys."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        yield from _texts(list(value.values()))
    elif isinstance(value, list | tuple):
        for one in value:
            yield from _texts(one)
