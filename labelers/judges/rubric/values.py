"""From what a judge said of each criterion to values, a score and a preference. What cannot be read
is invalid, never guessed."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prefloop.data.prompts.criteria import Criterion
from prefloop.labelers.base import Preference
from prefloop.labelers.judges.folder import criterion_key
from prefloop.labelers.judges.json_answers import json_objects, single_values
from prefloop.labelers.judges.ratings import whole_number
from prefloop.labelers.judges.settings import words_of
from prefloop.labelers.judges.stored_logprobs import (
    HIGHEST_LOGPROB,
    MOST_MASS,
    UNTOLD,
    too_much,
    unknown_logprobs,
)

Shares = NDArray[np.float64]
"""Probability of each choice of a criterion, from the worst for the answer to the best."""
VETOED = -1.0
"""What a failed veto adds to a score: below each of those that pass, which lie in 0 to 1."""
_FINEST = 20_000
"""Steps of a sum of weights, where the weights have no coarser common measure."""
_ROUNDING = 1e-9
_LIKELIER = 0.5
"""Probability above which a veto is failed."""


@dataclass(frozen=True)
class Judgment:
    """An answer by each criterion; ``shares`` null where what the judge said of it cannot be read,
    and ``problem`` then says why of the first one."""

    criteria: tuple[Criterion, ...]
    shares: tuple[Shares | None, ...]
    problem: str | None = None
    rationale: str | None = None

    @property
    def values(self) -> tuple[float | None, ...]:
        """How well it meets each criterion, from 0 to 1: the expectation over the choices."""
        return tuple(None if each is None else _value(each) for each in self.shares)

    @property
    def whole(self) -> tuple[Shares, ...]:
        """The shares. Raises ``ValueError`` where some could not be read."""
        found = tuple(each for each in self.shares if each is not None)
        if len(found) < len(self.criteria):
            raise ValueError(self.problem)
        return found

    def fails(self, place: int) -> bool | None:
        """Whether it more likely than not does not meet a criterion at all; null where unknown."""
        shares = self.shares[place]
        return None if shares is None else float(shares[0]) > _LIKELIER

    @property
    def failing(self) -> float:
        """Probability that it fails a veto: that of the likeliest one to be failed."""
        pairs = zip(self.criteria, self.whole, strict=True)
        return max((float(shares[0]) for one, shares in pairs if one.veto), default=0.0)

    @property
    def vetoed(self) -> bool:
        """Whether it more likely than not fails a veto: does not meet its criterion at all."""
        return self.failing > _LIKELIER

    @property
    def score(self) -> float:
        """The weighted mean of the values, less 1 where it is vetoed."""
        weights = [abs(one.weight) for one in self.criteria]
        mean = float(np.average([_value(each) for each in self.whole], weights=weights))
        return mean + VETOED if self.vetoed else mean


def from_criteria_json(
    text: str, criteria: Sequence[Criterion], finish_reason: str | None = None
) -> Judgment:
    """The judgments in a JSON object with the number of a choice for each criterion."""
    criteria = tuple(criteria)
    try:
        said = single_values(json_objects(text, cut=finish_reason == "length"))
    except ValueError as error:
        return Judgment(criteria, (None,) * len(criteria), str(error))
    shares: list[Shares | None] = []
    problems = []
    for number, one in enumerate(criteria, start=1):
        key = criterion_key(number)
        choice = whole_number(said.get(key))
        if choice is not None and 1 <= choice <= len(one.choices):
            shares.append(_oriented(one, np.eye(len(one.choices))[choice - 1]))
            continue
        shares.append(None)
        problems.append(
            f"{key}: {said[key]!r} is not a choice from 1 to {len(one.choices)}"
            if key in said
            else f"there is no judgment of {key}"
        )
    rationale = said.get("rationale")
    return Judgment(
        criteria,
        tuple(shares),
        problems[0] if problems else None,
        rationale if isinstance(rationale, str) else None,
    )


def mean_judgment(judgments: Sequence[Judgment]) -> Judgment:
    """Several judgments of one answer as one: the shares of each choice among those that can be
    read, where these are more than half, and else the first that cannot."""
    read = [one for one in judgments if one.problem is None]
    if 2 * len(read) <= len(judgments):
        return next(one for one in judgments if one.problem is not None)
    if len(judgments) == 1:
        return judgments[0]
    shares = [np.mean(each, axis=0) for each in zip(*(one.whole for one in read), strict=True)]
    rationale = next((one.rationale for one in read if one.rationale), None)
    return Judgment(read[0].criteria, tuple(shares), None, rationale)


def from_criteria_logprobs(
    logprobs: Sequence[Mapping[str, float] | None],
    criteria: Sequence[Criterion],
    min_mass: float,
    texts: Sequence[str],
) -> Judgment:
    """The judgments in the log-probabilities (nats) of the choices as first token of each answer,
    one for each criterion; ``texts`` are the answers."""
    shares: list[Shares | None] = []
    problems = []
    for number, (one, found, text) in enumerate(
        zip(criteria, logprobs, texts, strict=True), start=1
    ):
        try:
            shares.append(_oriented(one, _read(found, text, len(one.choices), min_mass)))
        except ValueError as error:
            shares.append(None)
            problems.append(f"{criterion_key(number)}: {error}")
    return Judgment(tuple(criteria), tuple(shares), problems[0] if problems else None)


def choice_logprobs(text: str, choices: int) -> dict[str, float] | None:
    """An answer that is the number of a choice and nothing else, as if it had been certain; null
    for another. For answers behind a thought, whose log-probabilities the engine could not read."""
    said = whole_number(text.strip().rstrip("."))
    if said is None or not 1 <= said <= choices:
        return None
    return {word: 0.0 if word == str(said) else -math.inf for word in words_of(choices)}


def compare_judged(a: Judgment, b: Judgment) -> tuple[Preference, float]:
    """The preference between two answers by the same criteria, and P(a preferred to b).

    Where one of them is vetoed, the other wins, and the probability is that of this one being the
    only one to fail, among the cases where one fails alone. Where both are, or neither is:
    P(a's weighted sum is higher) + P(equal) / 2, the criteria taken as independent; exactly 0.5 up
    to rounding (1e-9) is a tie. Raises ``ValueError`` where what was said cannot be read.
    """
    if a.vetoed != b.vetoed:
        only_a, only_b = a.failing * (1 - b.failing), b.failing * (1 - a.failing)
        p_a = only_b / (only_a + only_b)
        return ("b" if a.vetoed else "a"), p_a
    if _certain(a) and _certain(b):
        of_a, of_b = (_exact_sum(each) for each in (a, b))
        p_a = float(of_a > of_b) + float(of_a == of_b) / 2
    else:
        steps = _steps(a.criteria)
        sums = [_sums(each.whole, steps) for each in (a, b)]
        below = np.concatenate([[0.0], np.cumsum(sums[1])[:-1]])
        p_a = float(sums[0] @ (below + sums[1] / 2))
    if abs(p_a - 0.5) < _ROUNDING:
        return "tie", 0.5
    return ("a", min(p_a, 1.0)) if p_a > 0.5 else ("b", max(p_a, 0.0))


def criteria_schema(criteria: Sequence[Criterion]) -> dict[str, Any]:
    """The JSON schema of an answer about all criteria, the rationale first."""
    keys = [criterion_key(number) for number in range(1, len(criteria) + 1)]
    kinds = {
        key: {"type": "integer", "minimum": 1, "maximum": len(one.choices)}
        for key, one in zip(keys, criteria, strict=True)
    }
    return {
        "type": "object",
        "properties": {"rationale": {"type": "string"}, **kinds},
        "required": ["rationale", *keys],
        "additionalProperties": False,
    }


def _value(shares: Shares) -> float:
    return float(shares @ np.linspace(0.0, 1.0, len(shares)))


def _oriented(criterion: Criterion, shares: Shares) -> Shares:
    return shares[::-1] if criterion.weight < 0 else shares


def _read(logprobs: Mapping[str, float] | None, text: str, choices: int, min_mass: float) -> Shares:
    words = words_of(choices)
    if logprobs is None or unknown_logprobs(logprobs, text, words):
        raise ValueError("the engine gave no log-probabilities for the choices")
    if any(math.isnan(logprobs.get(word, 0.0)) for word in words):
        raise ValueError(UNTOLD)
    if any(logprobs.get(word, 0.0) > HIGHEST_LOGPROB for word in words):
        raise ValueError("a choice's log-probability is above 0")
    shares = np.exp([logprobs.get(word, -math.inf) for word in words])
    mass = float(shares.sum())
    if mass > MOST_MASS:
        raise ValueError(f"the choices {too_much(mass)}")
    if mass < min_mass:
        raise ValueError(
            f"the choices have probability {mass:.3g} in all, less than {min_mass}: the judge was "
            "about to say something else"
        )
    return np.asarray(shares / mass, np.float64)


def _certain(judged: Judgment) -> bool:
    return all(float(shares.max()) == 1.0 for shares in judged.whole)


def _measures(criteria: Sequence[Criterion]) -> list[Fraction]:
    """What one choice more adds to the sum of weights, exactly, as the weights are written."""
    return [Fraction(repr(abs(one.weight))) / (len(one.choices) - 1) for one in criteria]


def _exact_sum(judged: Judgment) -> Fraction:
    measures = _measures(judged.criteria)
    total = Fraction(0)
    for measure, shares in zip(measures, judged.whole, strict=True):
        total += measure * int(shares.argmax())
    return total


def _steps(criteria: Sequence[Criterion]) -> list[int]:
    """The same in whole numbers: exactly, or to one in 20,000 of the highest sum."""
    measures = _measures(criteria)
    common = math.lcm(*(one.denominator for one in measures))
    whole = [int(one * common) for one in measures]
    whole = [one // math.gcd(*whole) for one in whole]
    highest = sum(one * (len(each.choices) - 1) for one, each in zip(whole, criteria, strict=True))
    if highest <= _FINEST:
        return whole
    return [round(Fraction(one * _FINEST, highest)) for one in whole]


def _sums(shares: Sequence[Shares], steps: Sequence[int]) -> Shares:
    """P(the weighted sum is so many steps) [highest sum + 1]."""
    total: Shares = np.ones(1)
    for each, step in zip(shares, steps, strict=True):
        spread = np.zeros(step * (len(each) - 1) + 1)
        np.add.at(spread, np.arange(len(each)) * step, each)
        total = np.convolve(total, spread).astype(np.float64)
    return total
