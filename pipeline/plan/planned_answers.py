"""What answers that are there already mean for a plan: how many, in how many pairs, how long."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

from prefloop.pipeline.stages.given_rows import GivenAnswers, prompt_key

_CHARACTERS = 4
"""Of a token."""


class PlannedAnswers:
    """The given answers by their prompts; nothing where none are given."""

    def __init__(self, given: GivenAnswers | None) -> None:
        sets: dict[str, dict[int, set[str]]] = defaultdict(lambda: defaultdict(set))
        writers: dict[str, dict[str, str]] = defaultdict(dict)
        lengths = []
        if given is not None:
            columns = given.rows.select(["prompt_id", "set", "text", "policy"])
            for row in columns.to_pylist():
                sets[row["prompt_id"]][row["set"]].add(row["text"])
                writers[row["prompt_id"]].setdefault(row["text"], row["policy"])
                lengths.append(len(row["text"]) / _CHARACTERS + 1)
        self._by_sets = given is not None and given.pairs == "rows"
        self._sets, self._writers = sets, writers
        self.tokens = sum(lengths) / max(len(lengths), 1)
        """Of an answer, on average."""
        self.longest = max(lengths, default=0.0)

    def of(self, messages: Sequence[dict[str, Any]]) -> int:
        """Different answers to a prompt."""
        return len(self._writers.get(prompt_key(messages), ()))

    def by_policy(self, messages: Sequence[dict[str, Any]]) -> Counter[str]:
        """The same by who wrote them: of equal ones, who is named first."""
        return Counter(self._writers.get(prompt_key(messages), {}).values())

    def pairs(self, messages: Sequence[dict[str, Any]], *, across_policies: bool) -> int:
        """Pairs of them that are compared: not those that were given apart."""
        key = prompt_key(messages)
        writer: Mapping[str, str] = self._writers.get(key, {})
        groups = self._sets.get(key, {}).values() if self._by_sets else [set(writer)]
        found = {pair for group in groups for pair in combinations(sorted(group), 2)}
        return sum(not across_policies or writer[a] != writer[b] for a, b in found)
