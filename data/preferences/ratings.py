"""Answers with ratings, ranks or scores: which of them is better."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from prefloop.data.preferences.labels import PairLabel
from prefloop.data.preferences.transcripts import check_answer
from prefloop.data.sources.turns import Unusable

_TEXTS = ("response", "text", "answer", "content")
_SCORES = ("pm_score", "score", "overall_score", "rating")
"""Higher is better; beside these, a ``rank`` of 1 is the best."""


def best_and_worst(value: Any, field: str) -> tuple[str, str, PairLabel]:
    """The answers with the highest and the lowest rating; of several with one rating the first.
    A tie of the first two where all ratings are equal.

    An answer without a readable rating takes no part. Raises :class:`Unusable`.
    """
    if not isinstance(value, list):
        raise Unusable(field, "wrong_type", "is no list of rated completions")
    rated = []
    for item in value:
        rating = _rating(item) if isinstance(item, dict) else None
        if rating is not None:
            text = next((item[key] for key in _TEXTS if item.get(key) is not None), None)
            rated.append((rating, text))
    if len(rated) < 2:
        raise Unusable(
            field,
            "missing_rating",
            f"{len(rated)} of {len(value)} completions have ratings, and a pair needs two",
        )
    ratings = [rating for rating, _ in rated]
    if max(ratings) == min(ratings):
        return _completion(rated[0][1], field), _completion(rated[1][1], field), "tie"
    best, worst = (rated[ratings.index(end(ratings))][1] for end in (max, min))
    return _completion(best, field), _completion(worst, field), "a"


def by_scores(of_columns: Mapping[str, Any]) -> PairLabel:
    """Which of the scores of two columns is higher. Raises :class:`Unusable` for what is none."""
    scores = []
    for name, value in of_columns.items():
        score = as_number(value)
        if score is None:
            raise Unusable(name, "bad_label", "is no finite number: write the score")
        scores.append(score)
    first, second = scores
    if first == second:
        return "tie"
    return "a" if first > second else "b"


def as_number(value: Any) -> float | None:
    """``value`` as a finite number, which it may also be as text; else None."""
    if isinstance(value, bool):
        return None
    try:
        found = float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return found if math.isfinite(found) else None


def _completion(value: Any, field: str) -> str:
    if value is None:
        raise Unusable(field, "null", "a completion has no response: write its text")
    if not isinstance(value, str):
        kind = type(value).__name__
        raise Unusable(
            field, "wrong_type", f"is of type {kind} where text is needed: quote it, or delete it"
        )
    return check_answer(value, field)


def _rating(completion: Mapping[str, Any]) -> float | None:
    """Mean of the ratings of a completion's aspects (those without a number are left out), or its
    rank or score."""
    aspects = completion.get("annotations")
    if isinstance(aspects, Mapping):
        ratings = [rating for each in aspects.values() for rating in _ratings(each)]
        # The mean of equal ratings in another order must be the same number.
        return math.fsum(ratings) / len(ratings) if ratings else None
    rank = as_number(completion.get("rank"))
    if rank is not None:
        return -rank
    scores = (as_number(completion.get(name)) for name in _SCORES)
    return next((score for score in scores if score is not None), None)


def _ratings(aspect: Any) -> Sequence[float]:
    """An aspect's rating: none or one. It may come as a list of one or as text."""
    if isinstance(aspect, list):
        return [rating for each in aspect for rating in _ratings(each)]
    value = aspect.get("Rating", aspect.get("rating")) if isinstance(aspect, Mapping) else None
    rating = as_number(value)
    return [] if rating is None else [rating]
