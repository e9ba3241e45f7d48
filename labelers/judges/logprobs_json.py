"""Log-probabilities in the ``choice_logprobs`` column of the votes: as JSON can hold them."""

from __future__ import annotations

import math
from collections.abc import Mapping

Kept = dict[str, float | None]
"""Nats of each word as the first token; null is minus infinity: the engine did not see it."""


def keep(logprobs: Mapping[str, float] | None) -> Kept | None:
    """``logprobs`` (nats) for the votes. One that is not a number spoils them all."""
    if logprobs is None or any(math.isnan(value) for value in logprobs.values()):
        return None
    return {word: value if math.isfinite(value) else None for word, value in logprobs.items()}


def restore(kept: Kept | None) -> dict[str, float] | None:
    """The log-probabilities (nats) that :func:`keep` kept."""
    if kept is None:
        return None
    return {word: -math.inf if value is None else value for word, value in kept.items()}
