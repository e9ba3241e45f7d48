"""A number from a sample, with the interval that says how far to trust it."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from prefloop.labelers.statistics.clusters import Clusters, Grouping


@dataclass(frozen=True, slots=True)
class Estimate:
    """``value`` with its confidence interval ``low`` to ``high`` from ``n`` observations."""

    value: float
    low: float
    high: float
    n: int


def wilson(share: float, n: float, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval of a share that was seen in ``n`` observations; (0, 1) for none.

    Wilson 1927, Journal of the American Statistical Association 22. Unlike the normal interval it
    stays within 0 and 1, and has width where all observations are alike. ``n`` need not be whole:
    observations that tend to be alike count for fewer. Written out, since statsmodels, which has
    it too, takes a second to import.
    """
    from scipy.special import ndtri

    if n == 0:
        return 0.0, 1.0
    z = float(ndtri((1 + confidence) / 2))
    scale = 1 + z**2 / n
    centre = (share + z**2 / (2 * n)) / scale
    half = z * math.sqrt(share * (1 - share) / n + z**2 / (4 * n**2)) / scale
    # At 0 and 1 a bound equals the share; min and max only undo the rounding there.
    return max(0.0, min(centre - half, share)), min(1.0, max(centre + half, share))


def proportion_estimate(successes: float, n: int, confidence: float = 0.95) -> Estimate:
    """Share of ``successes`` in ``n`` observations, at least one, with Wilson's interval.

    Half a success is a tie.
    """
    share = successes / n
    return Estimate(share, *wilson(share, n, confidence), n)


def mean_estimate(
    values: ArrayLike, clusters: Clusters | None = None, confidence: float = 0.95
) -> Estimate:
    """Mean of ``values`` [N] with Student's t interval that knows about clusters.

    ``clusters`` [N] (prompt ids; default: each value is its own): variance and degrees of freedom
    are those of ``prefloop.labelers.statistics.clusters.Grouping``, which for values that are their
    own clusters are s^2 / N and N - 1.

    One cluster gives an unbounded interval. Raises ``ValueError`` for an empty or non-finite input,
    and lengths that differ.
    """
    from scipy.special import stdtrit

    sample = np.asarray(values, dtype=np.float64)
    if sample.ndim != 1 or sample.size == 0:
        raise ValueError(f"a mean needs at least one value in one dimension, got {sample.shape}")
    if not np.isfinite(sample).all():
        raise ValueError(f"{int((~np.isfinite(sample)).sum())} of {sample.size} are not finite")
    grouping = Grouping.of(clusters, sample.size)
    mean, n = float(sample.mean()), sample.size
    if len(grouping.sizes) == 1:
        return Estimate(mean, -np.inf, np.inf, n)
    error = math.sqrt(grouping.variance_of_mean(sample))
    half = float(stdtrit(grouping.freedom, (1 + confidence) / 2)) * error
    return Estimate(mean, mean - half, mean + half, n)
