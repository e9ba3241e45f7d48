"""The origin labeler: answers of one member of the pool are preferred to those of another.

Where a stronger and a weaker policy answer the same prompt, the difference between them teaches,
whatever the answers are worth ("delta learning").
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from prefloop.labelers.base import Answer, Pair, Vote, vote_on
from prefloop.labelers.config import OriginLabeler


class OriginPreferred:
    """Votes where one answer is of members that all stand before those of the other."""

    def __init__(self, config: OriginLabeler) -> None:
        self.name = config.name
        self._rank = {name: place for place, name in enumerate(config.order)}

    async def label(self, pairs: Sequence[Pair], *, block: str) -> list[Vote]:  # noqa: ARG002
        """At most one vote (order ``none``) for each pair; none where it has no opinion."""
        writers: dict[tuple[str, str], set[str | None]] = defaultdict(set)
        for pair in pairs:
            for answer in (pair.a, pair.b):
                writers[_said(pair, answer)].add(answer.policy)
        votes = []
        for pair in pairs:
            a, b = (self._places(writers[_said(pair, one)]) for one in (pair.a, pair.b))
            if a is None or b is None or not (a[-1] < b[0] or b[-1] < a[0]):
                continue
            wins = a[-1] < b[0]
            votes.append(
                vote_on(
                    pair,
                    self.name,
                    order="none",
                    preference="a" if wins else "b",
                    p_a=float(wins),
                )
            )
        return votes

    def _places(self, writers: set[str | None]) -> list[int] | None:
        """Where in the order the writers of a text stand; null where one stands nowhere."""
        places = [self._rank.get(name) if name is not None else None for name in writers]
        found = sorted(place for place in places if place is not None)
        return found if len(found) == len(places) else None


def _said(pair: Pair, answer: Answer) -> tuple[str, str]:
    """What two members may have said alike."""
    return pair.prompt_id, answer.text.strip()
