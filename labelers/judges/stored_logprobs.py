"""Log-probabilities as JSON can hold them, for the ``choice_logprobs`` column of the votes."""

from __future__ import annotations

import math
from collections.abc import Mapping

StoredLogprobs = dict[str, float | None]
"""Nats of each word as the first token; null is minus infinity: the engine did not see it."""


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
