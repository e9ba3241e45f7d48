"""Log-probabilities as JSON can hold them, for the ``choice_logprobs`` column of the votes."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

StoredLogprobs = dict[str, float | None]
"""Nats of each word as the first token; null is minus infinity: the engine did not see it."""


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
    """``logprobs`` (nats) as they are stored; null where there are none, or one is not a number."""
    if logprobs is None or any(math.isnan(value) for value in logprobs.values()):
        return None
    return {word: value if math.isfinite(value) else None for word, value in logprobs.items()}


def restore_logprobs(stored: StoredLogprobs | None) -> dict[str, float] | None:
    """The log-probabilities (nats) that :func:`store_logprobs` stored."""
    if stored is None:
        return None
    return {word: -math.inf if value is None else value for word, value in stored.items()}
