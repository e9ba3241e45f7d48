"""What scorers do with the scores of two answers."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from prefloop.labelers.base import Answer, Pair, Preference, Vote, vote_on

Scored = float | str
"""The finite score of an answer, or why there is none."""


@dataclass(frozen=True, slots=True)
class ScoredAnswer:
    """An answer's score, and the tokens that were read for it."""

    score: Scored
    tokens: int


def bradley_terry_votes(
    pairs: Sequence[Pair],
    labeler: str,
    min_gap: float,
    score: Callable[[Sequence[tuple[Pair, Answer]]], Sequence[ScoredAnswer]],
) -> list[Vote]:
    """One vote (order ``none``) of ``labeler`` for each pair, by :func:`bradley_terry`.

    ``score`` is asked once, for each answer once, however many pairs it is in; an answer's tokens
    are counted in the first vote about it. A score that is not finite is none.
    """
    # Keyed by the prompt too: what is scored is a whole conversation.
    asked = {_key(pair, answer): (pair, answer) for pair in pairs for answer in (pair.a, pair.b)}
    found = dict(zip(asked, score(list(asked.values())), strict=True))
    uncounted = {key: one.tokens for key, one in found.items()}
    votes = []
    for pair in pairs:
        keys = [_key(pair, answer) for answer in (pair.a, pair.b)]
        of_a, of_b = (_finite(found[key].score) for key in keys)
        tokens = sum(uncounted.pop(key, 0) for key in keys)
        if isinstance(of_a, str) or isinstance(of_b, str):
            votes.append(unscored(pair, labeler, of_a, of_b, prompt_tokens=tokens))
            continue
        preference, p_a = bradley_terry(of_a, of_b, min_gap=min_gap)
        votes.append(
            vote_on(
                pair,
                labeler,
                order="none",
                preference=preference,
                p_a=p_a,
                score_a=of_a,
                score_b=of_b,
                prompt_tokens=tokens,
            )
        )
    return votes


def bradley_terry(
    score_a: float, score_b: float, *, min_gap: float = 0.0
) -> tuple[Preference, float]:
    """The preference between two finite scores, and P(a preferred to b).

    P = sigma(score_a - score_b): Bradley and Terry 1952, with scores as log-strengths; the model
    behind equation 1 of Ouyang et al. 2022 (arXiv 2203.02155). Scores that differ by no more than
    ``min_gap`` are a tie, which has exactly 0.5.
    """
    gap = score_a - score_b
    if abs(gap) <= min_gap:
        return "tie", 0.5
    smaller = 1.0 / (1.0 + math.exp(min(abs(gap), 700.0)))  # exp overflows at 710
    return ("a", 1.0 - smaller) if gap > 0 else ("b", smaller)


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


def _finite(score: Scored) -> Scored:
    if isinstance(score, str) or math.isfinite(score):
        return score
    return f"not_finite: the score is {score}"


def _key(pair: Pair, answer: Answer) -> tuple[str, str]:
    return pair.prompt_id, answer.candidate_id
