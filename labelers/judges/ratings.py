"""From what a rating judge said to ratings. What cannot be read is invalid, never guessed."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prefloop.labelers.base import Preference
from prefloop.labelers.judges.json_answers import json_objects, single_values
from prefloop.labelers.judges.settings import RatingSettings
from prefloop.labelers.judges.stored_logprobs import (
    HIGHEST_LOGPROB,
    MOST_MASS,
    UNTOLD,
    too_much,
    unknown_logprobs,
)

_WHOLE = re.compile(r"(?:0|[1-9][0-9]?)(?:\.0{1,15})?")


@dataclass(frozen=True)
class Rating:
    """An answer's ratings. ``totals``: P(the sum over the aspects is i steps above the lowest one
    possible), float64 [aspects * (highest - lowest) + 1]; ``score``: the mean over the aspects of
    the expected rating, on the judge's own scale."""

    totals: NDArray[np.float64]
    score: float
    rationale: str | None = None


def from_ratings_json(
    text: str, settings: RatingSettings, finish_reason: str | None = None
) -> Rating:
    """The ratings in a JSON object with one whole number for each aspect: 5, 5.0 or "5".

    Raises ``ValueError``, saying why, where an aspect is missing, is rated twice and differently,
    or is rated off the scale.
    """
    said = single_values(json_objects(text, cut=finish_reason == "length"))
    steps = []
    for aspect in settings.aspects:
        if aspect not in said:
            raise ValueError(f"there is no rating of {aspect}")
        rating = whole_number(said[aspect])
        if rating is None or not settings.lowest <= rating <= settings.highest:
            raise ValueError(
                f"{aspect}: {said[aspect]!r} is not a rating from {settings.lowest} to "
                f"{settings.highest}"
            )
        steps.append(rating - settings.lowest)
    totals = np.zeros(len(steps) * (settings.highest - settings.lowest) + 1)
    totals[sum(steps)] = 1.0
    rationale = said.get("rationale")
    return Rating(
        totals,
        settings.lowest + sum(steps) / len(steps),
        rationale if isinstance(rationale, str) else None,
    )


def mean_rating(said: Sequence[Rating | str]) -> Rating:
    """Several ratings of one answer as one, or in place of one why it cannot be read.

    Raises ``ValueError``, with the first reason, where half of them or more cannot.
    """
    read = [one for one in said if isinstance(one, Rating)]
    if 2 * len(read) <= len(said):
        raise ValueError(next(one for one in said if isinstance(one, str)))
    totals = np.mean([one.totals for one in read], axis=0)
    rationale = next((one.rationale for one in read if one.rationale), None)
    return Rating(totals, float(np.mean([one.score for one in read])), rationale)


def from_ratings_logprobs(
    logprobs: Sequence[Mapping[str, float] | None],
    settings: RatingSettings,
    texts: Sequence[str] | None = None,
) -> Rating:
    """Ratings from the log-probabilities (nats) of the rating words as first token, one mapping
    for each aspect; ``texts`` are the answers.

    The expected rating, sum of p(s) * s over the scale, is G-Eval's (Liu et al. 2023, arXiv
    2303.16634, equation 1), with p normalised over the scale. Aspects count as independent. Raises
    ``ValueError`` where the ratings of an aspect have less probability in all than ``min_mass``.
    """
    shares = [
        _share(aspect, found, text, settings)
        for aspect, found, text in zip(
            settings.aspects, logprobs, texts or [""] * len(logprobs), strict=True
        )
    ]
    totals: NDArray[np.floating[Any]] = shares[0]
    for share in shares[1:]:
        totals = np.convolve(totals, share)
    scale = np.arange(settings.lowest, settings.highest + 1)
    return Rating(totals.astype(np.float64), float(np.mean([share @ scale for share in shares])))


def word_logprobs(text: str, settings: RatingSettings) -> dict[str, float] | None:
    """An answer that is a rating and nothing else, as if it had been certain; null for another.

    For ratings behind a thought, whose log-probabilities the engine could not read.
    """
    said = whole_number(text.strip().rstrip("."))
    if said is None or not settings.lowest <= said <= settings.highest:
        return None
    return {word: 0.0 if word == str(said) else -math.inf for word in settings.words}


def compare(a: Rating, b: Rating) -> tuple[Preference, float]:
    """The preference between two rated answers, and P(a's sum is higher) + P(equal) / 2.

    Exactly 0.5 up to rounding (1e-9) is a tie.
    """
    below = np.concatenate([[0.0], np.cumsum(b.totals)[:-1]])
    p_a = float(a.totals @ (below + b.totals / 2))
    if abs(p_a - 0.5) < 1e-9:
        return "tie", 0.5
    return ("a", min(p_a, 1.0)) if p_a > 0.5 else ("b", max(p_a, 0.0))


def whole_number(value: Any) -> int | None:
    """A whole number as JSON or a judge may write it: 5, 5.0, "5"; null for anything else."""
    if isinstance(value, str) and _WHOLE.fullmatch(value.strip()):
        value = float(value)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return int(value) if math.isfinite(value) and value == int(value) else None


def ratings_schema(settings: RatingSettings) -> dict[str, Any]:
    """The JSON schema of an answer that rates all aspects, the rationale first."""
    rating = {"type": "integer", "minimum": settings.lowest, "maximum": settings.highest}
    return {
        "type": "object",
        "properties": {"rationale": {"type": "string"}, **dict.fromkeys(settings.aspects, rating)},
        "required": ["rationale", *settings.aspects],
        "additionalProperties": False,
    }


def _share(
    aspect: str, logprobs: Mapping[str, float] | None, text: str, settings: RatingSettings
) -> NDArray[np.float64]:
    if logprobs is None or unknown_logprobs(logprobs, text, settings.words):
        raise ValueError(f"{aspect}: the engine gave no log-probabilities for the ratings")
    if any(math.isnan(logprobs.get(word, 0.0)) for word in settings.words):
        raise ValueError(f"{aspect}: {UNTOLD}")
    if any(logprobs.get(word, 0.0) > HIGHEST_LOGPROB for word in settings.words):
        raise ValueError(f"{aspect}: a rating's log-probability is above 0")
    shares = np.exp([logprobs.get(word, -math.inf) for word in settings.words])
    mass = float(shares.sum())
    if mass > MOST_MASS:
        raise ValueError(f"{aspect}: the ratings {too_much(mass)}")
    if mass < settings.min_mass:
        raise ValueError(
            f"{aspect}: the ratings have probability {mass:.3g} in all, less than "
            f"{settings.min_mass}: the judge was about to say something else"
        )
    return np.asarray(shares / mass, np.float64)
