"""A pair as the page has it: its figures, texts, votes, and where all of it came from."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import pyarrow as pa

from prefloop.data.arrays import Ints
from prefloop.pipeline.view.pair_facts import figure
from prefloop.pipeline.view.word_diff import cut_parts, differences

Shown = dict[str, Any]
"""A pair, or a part of one, as JSON."""

_START = 160
"""Characters of a prompt in the list."""


class BrowsedPairs(Protocol):
    """Where pairs come from."""

    name: str
    facts: pa.Table
    """Schema ``FACTS``, every pair."""

    def read(self, rows: Sequence[int], *, votes: bool = True) -> list[Shown]:
        """The pairs in these rows of ``facts``, in this order; keys as :func:`shown_pair` takes
        them. Without their ``votes`` where the caller needs prompts alone."""
        ...

    def search(self, text: str) -> Ints:
        """Rows of the pairs with ``text`` in the prompt, an answer, a thought of one or a
        rationale, whatever the case of its letters."""
        ...


def figures(pairs: BrowsedPairs, rows: Sequence[int]) -> list[Shown]:
    """The facts of ``rows``, as the list shows them and filters go by."""
    table = pairs.facts.take(pa.array(rows, pa.int64())).drop_columns(["part", "row"])
    for name in ("ratio", "length"):
        table = table.append_column(name, figure(table, name))
    found = table.to_pylist()
    return [{**_finite(one), "id": row} for one, row in zip(found, rows, strict=True)]


def _finite(row: Mapping[str, Any]) -> Shown:
    return {
        key: None if isinstance(value, float) and not math.isfinite(value) else value
        for key, value in row.items()
    }


def start_of(turns: Sequence[Mapping[str, Any]]) -> str:
    """How a prompt begins, on one line: its last turn of a user."""
    users = [turn["content"] or "" for turn in turns if turn["role"] == "user"]
    text = (users or [turn["content"] or "" for turn in turns] or [""])[-1]
    line = " ".join(text[: 4 * _START].split())
    return line if len(line) <= _START else line[: _START - 1] + "…"


def listed_pairs(pairs: BrowsedPairs, rows: Sequence[int]) -> list[Shown]:
    """``rows`` as the list shows them."""
    read = pairs.read(rows, votes=False)
    return [
        {**facts, "start": start_of(one["turns"])}
        for facts, one in zip(figures(pairs, rows), read, strict=True)
    ]


def shown_pairs(pairs: BrowsedPairs, rows: Sequence[int], most: int | None = None) -> list[Shown]:
    """``rows`` in full; of longer texts the first ``most`` characters."""
    return [
        {**facts, "start": start_of(one["turns"]), **_shown(one, most)}
        for facts, one in zip(figures(pairs, rows), pairs.read(rows), strict=True)
    ]


def _shown(pair: Shown, most: int | None) -> Shown:
    sides = pair["chosen"], pair["rejected"]
    found = differences(*(side["text"] for side in sides))
    parts = found or [[(side["text"], False)] for side in sides]
    answers = {
        name: {
            **{key: value for key, value in side.items() if key != "text"},
            "parts": [[text, int(differs)] for text, differs in cut_parts(of_side, most)],
            "characters": len(side["text"]),
        }
        for name, side, of_side in zip(("chosen", "rejected"), sides, parts, strict=True)
    }
    return {**_cut({**pair, **answers}, most), "compared": found is not None}


def _cut(value: Any, most: int | None) -> Any:
    """``value`` with every text in it cut to ``most`` characters, and how many more there are."""
    if most is None:
        return value
    if isinstance(value, str) and len(value) > most:
        return f"{value[:most]} … {len(value) - most:,} more characters"
    if isinstance(value, Mapping):
        return {key: _cut(item, most) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_cut(item, most) for item in value]
    return value


def pretty(text: str | None) -> str | None:
    """JSON for people; what is none, as it is."""
    if not text:
        return None
    try:
        return json.dumps(json.loads(text), indent=2, ensure_ascii=False)
    except (ValueError, RecursionError):
        return text
