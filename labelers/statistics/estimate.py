"""A number from a sample, with the interval that says how far to trust it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike


@dataclass(frozen=True, slots=True)
class Estimate:
    """``value`` with its confidence interval ``low`` to ``high`` from ``n`` observations."""

    value: float
    low: float
    high: float
    n: int


def mean_estimate(values: ArrayLike, confidence: float = 0.95) -> Estimate:
    """Mean of ``values`` [N] with Student's t interval (N - 1 degrees of freedom).

    One value gives an unbounded interval. Raises ``ValueError`` for an empty or non-finite input.
    """
    from scipy.stats import t

    sample = np.asarray(values, dtype=np.float64)
    if sample.ndim != 1 or sample.size == 0:
        raise ValueError(f"a mean needs at least one value in one dimension, got {sample.shape}")
    if not np.isfinite(sample).all():
        raise ValueError(f"{int((~np.isfinite(sample)).sum())} of {sample.size} are not finite")
    mean, n = float(sample.mean()), sample.size
    if n == 1:
        return Estimate(mean, -np.inf, np.inf, 1)
    half = float(t.ppf((1 + confidence) / 2, n - 1) * sample.std(ddof=1) / np.sqrt(n))
    return Estimate(mean, mean - half, mean + half, n)
