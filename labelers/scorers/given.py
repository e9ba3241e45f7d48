"""The labels that the data came with, as votes: to be compared with, or to decide by."""

from __future__ import annotations

from collections.abc import Sequence

from prefloop.labelers.base import Pair, Vote, vote_on
from prefloop.labelers.config import GivenLabeler


class GivenLabels:
    """Votes on pairs of which the data say which answer is better, and abstains elsewhere."""

    def __init__(self, config: GivenLabeler) -> None:
        self.name = config.name

    async def label(self, pairs: Sequence[Pair], *, block: str) -> list[Vote]:  # noqa: ARG002
        """A vote (order ``none``) for each row of the data that compares the pair: rows may
        contradict each other, which makes a tie."""
        return [
            vote_on(
                pair,
                self.name,
                order="none",
                preference=said.preference,
                score_a=said.score_a,
                score_b=said.score_b,
                completion=said.where,
            )
            for pair in pairs
            for said in pair.given
        ]
