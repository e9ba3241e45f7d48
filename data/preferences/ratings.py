"""Answers with ratings, ranks or scores: which of them is better."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from prefloop.data.preferences.labels import PairLabel
from prefloop.data.preferences.transcripts import check_answer, split_answer
from prefloop.data.sources.tool_turns import full_turns
from prefloop.data.sources.turns import Unusable, conversation_in
from prefloop.data.sources.written import looks_like_list, written_list

_TEXTS = ("response", "text", "answer", "content", "completion", "generation")
_SCORES = ("pm_score", "score", "overall_score", "rating", "reward")
"""Higher is better; beside these, a ``rank`` of 1 (or 0) is the best."""
OF_ANSWERS = ("rank", *_SCORES)
"""Keys of an answer in a list that say how good it is."""
_MODELS = ("model", "model_name", "policy", "generator")
_FLAGS = {"true": 1.0, "false": 0.0}


@dataclass(frozen=True)
class RatedAnswer:
    """One answer of a list as the row has it: its text is not checked yet."""

    value: Any
    rating: float | None
    """Higher is better; null where nothing is said that can be read."""
    model: str | None
    absolute: bool = False
    """Whether the rating is a score of the answer alone, and no rank among others."""


def answers_in(
    value: Any, field: str, *, ratings: Any = None, models: Any = None, ranked: bool = False
) -> list[RatedAnswer]:
    """The answers of a list: objects with ratings of their own, or texts or turns with ``ratings``
    beside them (``ranked``: lower is better). Either may be written out as text. Raises
    :class:`Unusable`."""
    value, ratings = (_list_in(one, field) for one in (value, ratings))
    if not isinstance(value, list):
        raise Unusable(field, "wrong_type", "is no list of rated completions")
    if ratings is not None and (not isinstance(ratings, list) or len(ratings) != len(value)):
        raise Unusable(
            field,
            "missing_rating",
            f"the {len(value)} answers have ratings that are no list of as many numbers",
        )
    names = (
        models if isinstance(models, list) and len(models) == len(value) else [None] * len(value)
    )
    found = []
    for place, item in enumerate(value):
        model = model_name(names[place])
        if isinstance(item, Mapping) and "role" not in item and "from" not in item:
            text = next((item[key] for key in _TEXTS if item.get(key) is not None), None)
            rating = rating_in(item)
            model = model or next(
                (name for key in _MODELS if (name := model_name(item.get(key)))), None
            )
            absolute = as_number(item.get("rank")) is None
        else:
            text, rating, absolute = item, None, not ranked
        if ratings is not None and rating is None:
            rating = as_rating(ratings[place])
            if rating is not None and ranked:
                rating = -rating
            absolute = not ranked
        found.append(RatedAnswer(text, rating, model, absolute and rating is not None))
    return found


def _list_in(value: Any, field: str) -> Any:
    if not isinstance(value, str) or not looks_like_list(value):
        return value
    try:
        return written_list(value)
    except ValueError as error:
        raise Unusable(field, "written_list", str(error)) from None


def in_order(value: Any, field: str) -> list[RatedAnswer]:
    """The answers of a list that has the best first. Raises :class:`Unusable`."""
    if isinstance(value, str):
        raise Unusable(
            field, "wrong_type", "is one text and no list of answers: there is no pair to compare"
        )
    found = answers_in(value, field)
    return [RatedAnswer(one.value, -float(place), one.model) for place, one in enumerate(found)]


def refuse_order(value: Any, field: str) -> None:
    """Raise :class:`Unusable` for a ranking that may as well be the answers' numbers in their
    order, the best first, and would then say something else: [2, 3, 1]."""
    numbers = [as_number(one) for one in value] if isinstance(value, list) else []
    for first in (0, 1):
        places = [number - first for number in numbers if number is not None]
        if sorted(places) == list(range(len(numbers))):
            order = [places.index(place) for place in range(len(places))]
            if order != places:
                raise Unusable(
                    field,
                    "ambiguous_ranking",
                    f"{repr(value)[:80]} may be a rank for each answer, or the answers in their "
                    "order: name it, if it is ranks, with --columns "
                    f"prompt=..,answers=..,ranks={field}",
                )


def best_and_worst(answers: Sequence[RatedAnswer], field: str) -> tuple[str, str, PairLabel]:
    """The answers with the highest and the lowest rating; of several with one rating the first.
    A tie of the first two where all ratings are equal. An answer that is there several times has
    the mean of its ratings.

    An answer without a readable rating takes no part. Raises :class:`Unusable`.
    """
    rated = [one for one in answers if one.rating is not None]
    if len(rated) < 2:
        raise Unusable(
            field,
            "missing_rating",
            f"{len(rated)} of {len(answers)} completions have ratings, and a pair needs two",
        )
    keys = [one.value if isinstance(one.value, str) else repr(one.value) for one in rated]
    means = mean_ratings(keys, [one.rating for one in rated if one.rating is not None])
    if len(means) > 1:
        rated = [rated[keys.index(key)] for key in means]
        ratings = list(means.values())
    else:
        ratings = [one.rating for one in rated if one.rating is not None]
    if max(ratings) == min(ratings):
        return text_of(rated[0].value, field), text_of(rated[1].value, field), "tie"
    best, worst = (rated[ratings.index(end(ratings))] for end in (max, min))
    return text_of(best.value, field), text_of(worst.value, field), "a"


def mean_ratings(texts: Sequence[str], ratings: Sequence[float]) -> dict[str, float]:
    """The mean rating of each of the different ``texts``, in the order in which they come first.
    ``texts`` and ``ratings`` are of the same length."""
    of_texts: dict[str, list[float]] = {}
    for text, rating in zip(texts, ratings, strict=True):
        of_texts.setdefault(text, []).append(rating)
    return {text: math.fsum(of_text) / len(of_text) for text, of_text in of_texts.items()}


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
    if isinstance(value, bool) or (isinstance(value, str) and "_" in value):
        return None  # Python takes 1_0 for 10
    try:
        found = float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return found if math.isfinite(found) else None


def as_rating(value: Any) -> float | None:
    """``value`` as a number, yes or no (of who checked the answer) being 1 or 0; else None."""
    flag = _FLAGS.get(str(value).strip().lower()) if isinstance(value, bool | str) else None
    return as_number(value) if flag is None else flag


def model_name(value: Any) -> str | None:
    """The name of a model, where ``value`` is one."""
    name = " ".join(value.split()) if isinstance(value, str) else ""
    return name.encode("utf-8", "replace").decode()[:200] or None


def text_of(value: Any, field: str) -> str:
    """The text of one answer of a list. Raises :class:`Unusable`."""
    if value is None:
        raise Unusable(field, "null", "a completion has no response: write its text")
    if isinstance(value, list | Mapping):
        turns = [turn for _, turn in full_turns(conversation_in(value, field), field)]
        before, answer = split_answer(turns, field)
        if before:
            raise Unusable(
                field,
                "bad_messages",
                "a completion has turns before its answer: move them to the prompt",
            )
        return answer
    if not isinstance(value, str):
        kind = type(value).__name__
        raise Unusable(
            field, "wrong_type", f"is of type {kind} where text is needed: quote it, or delete it"
        )
    return check_answer(value, field)


def rating_in(completion: Mapping[str, Any]) -> float | None:
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
    scores = (as_rating(completion.get(name)) for name in _SCORES)
    return next((score for score in scores if score is not None), None)


def _ratings(aspect: Any) -> Sequence[float]:
    """An aspect's rating: none or one. It may come as a list of one or as text."""
    if isinstance(aspect, list):
        return [rating for each in aspect for rating in _ratings(each)]
    value = aspect.get("Rating", aspect.get("rating")) if isinstance(aspect, Mapping) else None
    rating = as_number(value)
    return [] if rating is None else [rating]
