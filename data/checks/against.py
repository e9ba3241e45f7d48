"""Evaluation sets to compare prompts with."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from prefloop.data.config import Columns, NearDuplicates, PromptsConfig, PromptSource
from prefloop.data.dedup import OverlapIndex
from prefloop.data.errors import InputError
from prefloop.data.prompts.prompt_rows import parse_row
from prefloop.data.sources.files import read_rows
from prefloop.data.sources.rows import BadRow, is_text

_COLUMNS = ("turns", "prompt", "messages", "instruction", "question", "query", "input", "text")
"""Where a prompt may stand; the first column that is there. ``turns`` are a user's (MT-Bench)."""
_LATER_TURN_WORDS = 10
"""Shorter turns behind the first ("Go on.") say nothing about which conversation it is."""


class EvaluationSet:
    """Prompts of a named evaluation set that training data must not hold.

    What counts as an overlap is :class:`prefloop.data.dedup.OverlapIndex`'s, with the defaults that
    prompts are read with.
    """

    def __init__(self, name: str, path: str) -> None:
        """Raises ``InputError`` for a set that cannot be read, and for its first bad row."""
        self.name = name
        self._turns = _read(path)
        self._index = OverlapIndex(
            self._turns,
            threshold=float(PromptsConfig.model_fields["overlap_threshold"].default),
            ngram=NearDuplicates().ngram,
        )

    def find(self, text: str) -> str | None:
        """The set's turn that ``text``, what users say in a prompt, overlaps with."""
        hit = self._index.find(text)
        return None if hit is None else self._turns[hit]


def parse_against(text: str) -> EvaluationSet:
    """``"NAME=PATH"`` as the set at PATH. Raises ``InputError``."""
    name, equals, path = text.partition("=")
    if not equals or not name.strip() or not path.strip():
        raise InputError(f"--against {text}: write NAME=PATH, e.g. mtbench=mt_bench.jsonl")
    return EvaluationSet(name.strip(), path.strip())


def _read(path: str) -> list[str]:
    found: list[str] = []
    for row in read_rows(PromptSource(path=path)):
        if isinstance(row, BadRow):
            raise InputError(f"{row} (evaluation sets must be free of bad rows)")
        column = next((name for name in _COLUMNS if row.fields.get(name) is not None), None)
        if column is None:
            raise InputError(
                f"{path}, row {row.row}: has none of the columns {', '.join(_COLUMNS)}, only "
                f"{', '.join(map(str, row.fields)) or 'nothing'}: rename the prompt's column"
            )
        turns = _texts(row.fields, column)
        if turns is None:
            prompt = parse_row(row, Columns(prompt=column, messages=column, metadata=()))
            if isinstance(prompt, BadRow):
                prompt = parse_row(row, Columns(prompt=column, metadata=()))
            if isinstance(prompt, BadRow):
                raise InputError(f"{prompt} (evaluation sets must be free of bad rows)")
            turns = [turn["content"] for turn in prompt["messages"] if turn["role"] == "user"]
        found += turns[:1] + [turn for turn in turns[1:] if len(turn.split()) >= _LATER_TURN_WORDS]
    if not found:
        raise InputError(f"{path}: holds no prompt: nothing can be compared with it")
    return found


def _texts(fields: Mapping[str, Any], column: str) -> list[str] | None:
    value = fields[column]
    if isinstance(value, list) and value and all(
        isinstance(item, str) and item.strip() and is_text(item) for item in value
    ):  # fmt: skip
        return value
    return None
