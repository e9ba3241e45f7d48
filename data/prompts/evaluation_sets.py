"""Prompts that training must not see: evaluation sets as they are read, and what repeats them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, TypeGuard

from prefloop.data.config import Columns, PromptSource
from prefloop.data.errors import InputError
from prefloop.data.hashing import content_id
from prefloop.data.prompts.dedup import OverlapIndex, normalise
from prefloop.data.prompts.prompt_rows import parse_row
from prefloop.data.quarantine import BadRow
from prefloop.data.sources.files import read_rows
from prefloop.data.sources.rows import RawRow
from prefloop.data.sources.written import looks_like_list, written_list
from prefloop.data.utf8 import is_null_word, is_text, listed

_COLUMNS = ("turns", "prompt", "messages", "instruction", "question", "query", "input", "text")
"""Where a prompt may stand unless the config says it. ``turns`` are a user's (MT-Bench)."""
_INSTRUCTION = "instruction"
_LATER_TURN_WORDS = 10
"""Shorter turns behind the first ("Go on.") say nothing about which conversation it is."""


@dataclass(frozen=True, slots=True)
class KnownPrompt:
    """A prompt that no training prompt may repeat."""

    turns: Sequence[str]
    """What its user says."""
    name: str | None = None
    """What to call it in the detail of a dropped prompt; null: by its text."""


class KnownPrompts:
    """Finds the known prompt that a prompt repeats.

    It does where users say the same in all turns, letter case and white space apart, however short
    the turns and whatever others say between them; and where all that the user says *overlaps*
    (:class:`prefloop.data.prompts.dedup.OverlapIndex`) with the first turn, a longer later turn or
    all turns together of a known prompt.
    """

    def __init__(
        self,
        prompts: Sequence[KnownPrompt],
        *,
        threshold: float,
        ngram: int,
        same_only: Sequence[KnownPrompt] = (),
    ) -> None:
        """``same_only``: prompts that may be overlapped with, but not be said again."""
        self._same: dict[str, str] = {}
        for prompt in (*prompts, *same_only):
            self._same.setdefault(_said(prompt.turns), prompt.name or "\n".join(prompt.turns))
        texts = [(text, prompt.name) for prompt in prompts for text in _distinctive(prompt.turns)]
        self._details = [text if name is None else name for text, name in texts]
        self._index = OverlapIndex([text for text, _ in texts], threshold=threshold, ngram=ngram)

    def find(self, turns: Sequence[str]) -> str | None:
        """The name or the text of the known prompt that a prompt with these turns of its user's
        repeats, or None."""
        normal = [normalise(turn) for turn in turns]
        same = self._same.get(content_id(*normal))
        if same is not None:
            return same
        alone = len(turns) == 1
        hit = self._index.find_normal(normal[0] if alone else normalise("\n".join(turns)))
        return None if hit is None else self._details[hit]


def read_evaluation_set(source: PromptSource) -> list[KnownPrompt]:
    """The prompts of an evaluation set.

    They stand in the columns that ``source`` names; where it names none, in the first known column
    of each file's first row, an ``instruction`` with its ``input`` (Alpaca's layout), joined as the
    prompts of preference data are. A prompt may also be a list of strings, the turns of a user,
    also written out as text.

    Raises ``InputError`` for a set that cannot be read and for its first bad row, because a prompt
    that repeats that row would go unnoticed.
    """
    named = source.columns.model_copy(update={"id": None, "reference": None, "metadata": ()})
    found: dict[str, Columns] = {}
    prompts = []
    for row in read_rows(source):
        if isinstance(row, BadRow):
            raise _refused(row)
        if row.source not in found:
            found[row.source] = _known_columns(row) if _names_none(named) else named
        columns = found[row.source]
        whole = (
            _with_input(row)
            if _names_none(named) and columns.prompt_column == _INSTRUCTION
            else row
        )
        prompts.append(KnownPrompt(_turns(whole, columns)))
    return prompts


def user_turns(messages: Iterable[Mapping[str, Any]]) -> list[str]:
    """What the user says in a conversation."""
    return [message["content"] for message in messages if message["role"] == "user"]


def _said(turns: Sequence[str]) -> str:
    return content_id(*map(normalise, turns))


def _distinctive(turns: Sequence[str]) -> Iterator[str]:
    """The texts to know a prompt by."""
    yield turns[0]
    yield from (turn for turn in turns[1:] if len(turn.split()) >= _LATER_TURN_WORDS)
    if len(turns) > 1:
        yield "\n".join(turns)


def _turns(row: RawRow, columns: Columns) -> list[str]:
    texts = row.fields.get(columns.prompt_column)
    if isinstance(texts, str) and is_null_word(texts):
        return [texts]  # it is no prompt, and so none that another could repeat
    if isinstance(texts, str) and looks_like_list(texts):
        with suppress(ValueError):  # what is no list is a text
            texts = written_list(texts)
    if _are_texts(texts):
        return texts
    prompt = parse_row(row, columns)
    if isinstance(prompt, BadRow):
        raise _refused(prompt)
    return user_turns(prompt["messages"])


def _with_input(row: RawRow) -> RawRow:
    """``row`` with its ``input`` behind the instruction."""
    parts = [row.fields.get(name) for name in (_INSTRUCTION, "input")]
    texts = [part for part in parts if isinstance(part, str) and part.strip()]
    if not texts:
        return row
    return replace(row, fields={**row.fields, _INSTRUCTION: "\n\n".join(texts)})


def _are_texts(value: Any) -> TypeGuard[list[str]]:
    return (
        isinstance(value, list)
        and bool(value)
        and all(isinstance(item, str) and item.strip() and is_text(item) for item in value)
    )


def _names_none(columns: Columns) -> bool:
    return columns.prompt is None and columns.messages is None


def _known_columns(row: RawRow) -> Columns:
    there = [name for name in _COLUMNS if name in row.fields]
    if "prompt" not in there and {_INSTRUCTION, "input"} <= set(there) - {"turns", "messages"}:
        return Columns(metadata=(), prompt=_INSTRUCTION, prefer="messages")
    if not there:
        raise InputError(
            f"{row.source}, row {row.row}: has none of the columns {', '.join(_COLUMNS)}, only "
            f"{listed(row.fields) or 'nothing'}: rename the prompt's column, or name "
            "it in the `columns` of the config"
        )
    name = next((name for name in there if _may_hold_prompts(name, row.fields[name])), there[0])
    if name == "messages":
        return Columns(metadata=())
    return Columns(metadata=(), prompt=name, prefer="messages")


def _may_hold_prompts(name: str, value: Any) -> bool:
    """Many datasets have a number of turns beside the prompt."""
    return _are_texts(value) if name == "turns" else value is not None


def _refused(row: BadRow) -> InputError:
    return InputError(f"{row} (evaluation sets must be free of bad rows)")
