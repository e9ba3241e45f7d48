"""Log-probabilities as JSON can hold them, for the ``choice_logprobs`` column of the votes."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Literal

_NOT_TOLD: Literal["not told"] = "not told"
StoredLogprobs = dict[str, float | Literal["not told"] | None]
"""Nats of each word as the first token; null is minus infinity: the engine did not see it. One that
was not told is not a number, which JSON has not: it may be as likely as any."""


HIGHEST_LOGPROB = 1e-3
"""What a log-probability may be, for rounding; above it is none."""


MOST_MASS = 1.05
"""What different words may have as first token in all, for rounding; beyond it the numbers are no
log-probabilities of one distribution."""


UNTOLD = (
    "the engine gave the log-probabilities of a few words alone, and one that it left out may be "
    "as likely"
)
"""What is wrong where the log-probability of a word is not a number: nobody knows it."""


def too_much(mass: float) -> str:
    """What is wrong with words that have the probability ``mass`` in all."""
    return (
        f"have probability {mass:.3g} in all, more than 1: what the server gives are no "
        "log-probabilities"
    )


def unknown_logprobs(logprobs: Mapping[str, float], text: str, words: Iterable[str]) -> bool:
    """Whether the engine gave no log-probabilities at all for the answer ``text``: it saw none of
    ``words``, although the answer begins with one."""
    if any(value != -math.inf for value in logprobs.values()):
        return False
    said = text.strip()
    return not logprobs or any(
        said.startswith(word) and not said[len(word) : len(word) + 1].isalnum() for word in words
    )


def store_logprobs(logprobs: Mapping[str, float] | None) -> StoredLogprobs | None:
    """``logprobs`` (nats) as they are stored; null where there are none."""
    if logprobs is None:
        return None
    return {word: _stored(value) for word, value in logprobs.items()}


def restore_logprobs(stored: StoredLogprobs | None) -> dict[str, float] | None:
    """The log-probabilities (nats) that :func:`store_logprobs` stored."""
    if stored is None:
        return None
    return {word: _restored(value) for word, value in stored.items()}


def _stored(value: float) -> float | Literal["not told"] | None:
    if math.isnan(value):
        return _NOT_TOLD
    return value if math.isfinite(value) else None


def _restored(value: float | Literal["not told"] | None) -> float:
    if value is None:
        return -math.inf
    return math.nan if isinstance(value, str) else value
