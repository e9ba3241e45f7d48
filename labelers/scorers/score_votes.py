"""What all scorers do with the scores of two answers."""

from __future__ import annotations

from typing import Any

from prefloop.labelers.base import Pair, Vote, vote_on

Scored = float | str
"""The finite score of an answer, or why there is none."""


def unscored(pair: Pair, labeler: str, of_a: Scored, of_b: Scored, **details: Any) -> Vote:
    """The invalid vote on a pair of which an answer has no score: the first reason is its
    ``completion``. ``details`` are further fields of the vote."""
    return vote_on(
        pair,
        labeler,
        order="none",
        preference="invalid",
        score_a=None if isinstance(of_a, str) else of_a,
        score_b=None if isinstance(of_b, str) else of_b,
        completion=next(one for one in (of_a, of_b) if isinstance(one, str)),
        **details,
    )
