"""How much of an AI-labelled dataset is right, from a few labels of people and all of the AI's."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from prefloop.data.arrays import Floats
from prefloop.labelers.base import LabelerError
from prefloop.labelers.statistics.clusters import Clusters, Grouping
from prefloop.labelers.statistics.estimate import Estimate
from prefloop.labelers.statistics.winrate import win_rate

FEWEST = 20
"""People's labels that an estimate needs at least."""
_STRETCH = 10.0
_ALIKE = 1e-9


@dataclass(frozen=True)
class DatasetAccuracy:
    """Share of the dataset's pairs that people would label as they are labelled."""

    estimate: Estimate
    """Prediction-powered, with its 95% interval; ``n`` counts people's labels."""
    by_people_alone: Estimate
    """The same from people's labels alone."""
    pairs: int
    """Pairs of the dataset."""


def dataset_accuracy(
    right: ArrayLike,
    confidence: ArrayLike,
    all_confidence: ArrayLike,
    inclusion: ArrayLike | None = None,
    prompts: Clusters | None = None,
) -> DatasetAccuracy:
    """Accuracy of N labelled pairs of which people labelled n.

    ``right`` [n] is 1 where people agree with the label, 0 where not, 0.5 for a tie; ``confidence``
    [n] the AI's probability of its label on those pairs and ``all_confidence`` [N] on all;
    ``inclusion`` [n] the probability with which each was drawn, null where all had the same.

    PPI++ for a mean (Angelopoulos, Duchi and Zrnic 2023, arXiv 2311.01453), by ppi-python: the
    mean of lambda f over all pairs plus the mean of Y - lambda f over the labelled ones, weighted
    by 1 / inclusion, with the lambda of least variance. It is valid however wrong the confidences
    are, and the tighter the better they are. Where people always or never agree, the normal
    interval would have no width: Wilson's of their labels alone stands in for it. Where all
    confidences are the same they tell nothing, and the labels of people alone are the estimate.
    ``prompts`` [n] (default: each pair has its own) are what repeats: the intervals are widened by
    the square root of the labels' design effect.

    Raises ``LabelerError`` for fewer than 20 labels.
    """
    from ppi_py import classical_mean_ci, ppi_mean_ci, ppi_mean_pointestimate

    y, f, every = (np.asarray(one, np.float64) for one in (right, confidence, all_confidence))
    if y.ndim != 1 or y.shape != f.shape or every.ndim != 1:
        raise ValueError(f"{y.shape} labels, {f.shape} and {every.shape} confidences")
    n = len(y)
    if n < FEWEST:
        raise LabelerError(
            f"people labelled {n} of the dataset's pairs: an estimate of its accuracy needs at "
            f"least {FEWEST}"
        )
    # The library looks for lambda between 0 and 1, but a judge that knows more than its
    # confidences show deserves more: what counts is lambda f.
    f, every = _STRETCH * f, _STRETCH * every
    weights = np.ones(n) if inclusion is None else 1 / np.asarray(inclusion, np.float64)
    weights = weights / weights.mean()
    if np.ptp(y) == 0:
        alone = win_rate(y, prompts)
        return DatasetAccuracy(alone, alone, len(every))
    mean = float((weights * y).mean())
    stretch = _widening(weights * (y - mean), Grouping.of(prompts, n))
    low_alone, high_alone = (
        float(np.squeeze(end)) for end in classical_mean_ci(y, w=weights, alpha=0.05)
    )
    alone = _within(mean, low_alone, high_alone, stretch, n)
    if np.ptp(np.concatenate([f, every])) <= _ALIKE:  # lambda would be 0 / 0
        return DatasetAccuracy(alone, alone, len(every))
    value = float(np.squeeze(ppi_mean_pointestimate(y, f, every, w=weights)))
    low, high = (float(np.squeeze(end)) for end in ppi_mean_ci(y, f, every, alpha=0.05, w=weights))
    return DatasetAccuracy(_within(value, low, high, stretch, n), alone, len(every))


def _widening(deviations: Floats, grouping: Grouping) -> float:
    n = len(deviations)
    alone = float((deviations**2).sum()) / (n * (n - 1))
    ratio = grouping.variance_of_mean(deviations) / alone
    return math.sqrt(grouping.design_effect(ratio, deviations, 0.95))


def _within(value: float, low: float, high: float, stretch: float, n: int) -> Estimate:
    low, high = value - stretch * (value - low), value + stretch * (high - value)
    value, low, high = (min(max(one, 0.0), 1.0) for one in (value, low, high))
    return Estimate(value, low, high, n)
