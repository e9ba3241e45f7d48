"""The reference labeler: the reference answer is preferred to any sampled one.

This is how an instruction dataset without rejected answers becomes preference data.
"""

from __future__ import annotations

from collections.abc import Sequence

from prefloop.labelers.base import Pair, Vote, vote_on
from prefloop.labelers.config import ReferenceLabeler


class ReferencePreferred:
    """Votes where exactly one answer of the pair is the reference, and abstains elsewhere."""

    def __init__(self, config: ReferenceLabeler) -> None:
        self.name = config.name

    async def label(self, pairs: Sequence[Pair], *, block: str) -> list[Vote]:  # noqa: ARG002
        """At most one vote (order ``none``) for each pair; none where it has no opinion."""
        votes = []
        for pair in pairs:
            a, b = (answer.origin == "reference" for answer in (pair.a, pair.b))
            if a != b:
                votes.append(
                    vote_on(
                        pair,
                        self.name,
                        order="none",
                        preference="a" if a else "b",
                        p_a=float(a),
                    )
                )
        return votes
