"""What answers that are there already mean for a plan: how many, in how many pairs, how long."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from prefloop.pipeline.stages.given_rows import GivenAnswers, prompt_key

_CHARACTERS = 4
"""Of a token."""


class PlannedAnswers:
    """The given answers by their prompts; nothing where none are given."""

    def __init__(self, given: GivenAnswers | None) -> None:
        sets: dict[str, dict[int, set[str]]] = defaultdict(lambda: defaultdict(set))
        lengths = []
        if given is not None:
            columns = given.rows.select(["prompt_id", "set", "text"])
            for row in columns.to_pylist():
                sets[row["prompt_id"]][row["set"]].add(row["text"])
                lengths.append(len(row["text"]) / _CHARACTERS + 1)
        self._answers = {key: len(set().union(*found.values())) for key, found in sets.items()}
        self._apart = {}
        if given is not None and given.pairs == "rows":
            self._apart = {key: _apart(found) for key, found in sets.items()}
        self.tokens = sum(lengths) / max(len(lengths), 1)
        """Of an answer, on average."""
        self.longest = max(lengths, default=0.0)

    def of(self, messages: Sequence[dict[str, Any]]) -> int:
        """Different answers to a prompt."""
        return self._answers.get(prompt_key(messages), 0)

    def apart(self, messages: Sequence[dict[str, Any]]) -> int:
        """Pairs of answers to a prompt that are not compared, because they were given apart."""
        return self._apart.get(prompt_key(messages), 0)


def _apart(sets: dict[int, set[str]]) -> int:
    texts = set().union(*sets.values())
    together = {
        frozenset((one, other)) for found in sets.values() for one in found for other in found
    }
    return math.comb(len(texts), 2) - sum(len(both) == 2 for both in together)
