"""How far a judge's probabilities can be believed."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from prefloop.data.arrays import Floats, Ints
from prefloop.labelers.statistics.clusters import Clusters
from prefloop.labelers.statistics.estimate import Estimate
from prefloop.labelers.statistics.winrate import win_rate

_MOST_BINS = 10
_FEWEST_IN_A_BIN = 10
_CLIP = 1e-6
_DIGITS = 9
"""Confidences that are alike so far are one."""
_DRAWS = 1000
_SEED = 0
_AT_ONCE = 1000


@dataclass(frozen=True)
class Bin:
    """Verdicts of about one confidence."""

    confidence: float
    """Mean probability that the judge gave to its own verdict, 0.5 to 1."""
    accuracy: Estimate
    """Share of right verdicts, with its 95% interval."""


@dataclass(frozen=True)
class Calibration:
    """Calibration of N probabilities."""

    n: int
    ece: float
    """Expected calibration error: mean over the verdicts of abs(accuracy - confidence) of their bin
    (Naeini et al. 2015, AAAI, eq. 1; Guo et al. 2017, ICML, eq. 3), with bins of equal mass."""
    ece_perfect: float
    """The mean error of a judge that is right as often as it says, at these same confidences: so
    many verdicts show an error even where there is none."""
    ece_perfect_high: float
    """In 95 of 100 draws its error is no higher: what lies above is the judge's own."""
    brier: float
    """Mean squared error of P(a preferred): 0 is perfect, 0.25 is no opinion."""
    log_loss: float
    """Mean negative log-likelihood in nats: ln 2 = 0.693 is no opinion. Probabilities are held
    1e-6 away from 0 and 1."""
    bins: tuple[Bin, ...]
    """The reliability diagram: at most ten bins of equal mass, of ten verdicts or more."""


def calibration(
    p_a: ArrayLike, a_is_better: ArrayLike, clusters: Clusters | None = None
) -> Calibration:
    """Calibration of P(a preferred to b) ``p_a`` [N] where a is the better one or not (bool [N]).

    Which answer is a is arbitrary, so bins are of the confidence max(p, 1 - p); a probability of
    exactly 0.5 is right half the time. The accuracies' intervals know of ``clusters`` [N] (prompts;
    default: each verdict is its own). Raises ``ValueError`` for empty input or what is no
    probability.
    """
    from sklearn.metrics import brier_score_loss, log_loss

    p, truth = np.asarray(p_a, np.float64), np.asarray(a_is_better, np.bool_)
    if p.ndim != 1 or not p.size or p.shape != truth.shape:
        raise ValueError(f"{p.shape} probabilities and {truth.shape} labels: one each, not none")
    if not ((p >= 0) & (p <= 1)).all():
        raise ValueError("a probability lies between 0 and 1")
    confidence = np.maximum(p, 1 - p)
    group = range(p.size) if clusters is None else clusters
    right = np.where(p == 0.5, 0.5, ((p > 0.5) == truth).astype(float))
    bins, gaps = [], 0.0
    draw = np.random.default_rng(_SEED)
    perfect = np.zeros(_DRAWS)
    for rows in _equal_masses(confidence):
        sure = confidence[rows]
        mean = float(sure.mean())
        accuracy = win_rate(right[rows], [group[row] for row in rows.tolist()])
        bins.append(Bin(mean, accuracy))
        gaps += len(rows) * abs(accuracy.value - mean)
        perfect += np.abs(_perfect_hits(sure, draw) - sure.sum())
    held = np.clip(p, _CLIP, 1 - _CLIP)
    return Calibration(
        n=p.size,
        ece=gaps / p.size,
        ece_perfect=float(perfect.mean()) / p.size,
        ece_perfect_high=float(np.quantile(perfect, 0.95)) / p.size,
        brier=float(brier_score_loss(truth, p, pos_label=True)),
        log_loss=float(log_loss(truth, held, labels=[False, True])),
        bins=tuple(bins),
    )


def _equal_masses(confidence: Floats) -> list[Ints]:
    """The verdicts in bins of about equal mass by ``confidence`` [N], each at least ten strong.

    Verdicts of one confidence stay in one bin: which of them a border would take, would be up to
    their order, and to which answer is called a (1 - (1 - p) need not be p to the last bit).
    """
    level = np.round(confidence, _DIGITS)
    order = np.argsort(level, kind="stable")
    n = len(order)
    number = max(1, min(_MOST_BINS, n // _FEWEST_IN_A_BIN))
    sizes = [len(part) for part in np.array_split(order, number)]
    steps = np.flatnonzero(np.diff(level[order])) + 1
    borders: list[int] = []
    for wanted in np.cumsum(sizes)[:-1] if len(steps) else ():
        nearest = int(steps[np.abs(steps - wanted).argmin()])
        if nearest - (borders or [0])[-1] >= _FEWEST_IN_A_BIN <= n - nearest:
            borders.append(nearest)
    return np.split(order, borders)


def _perfect_hits(sure: Floats, draw: np.random.Generator) -> Floats:
    """How many of the verdicts with these confidences [N] are right, drawn _DRAWS times; no opinion
    (exactly 0.5) is half right each time."""
    decided = sure[sure > 0.5]
    hits = np.full(_DRAWS, 0.5 * (len(sure) - len(decided)))
    values, times = np.unique(decided, return_counts=True)
    for start in range(0, len(values), _AT_ONCE):
        part = slice(start, start + _AT_ONCE)
        hits += draw.binomial(times[part], values[part], (_DRAWS, len(values[part]))).sum(axis=1)
    return hits
