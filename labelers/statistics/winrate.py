"""How often one policy's answers are preferred to another's, and how sure that is.

Pure functions on arrays. An outcome is 1 (win), 0.5 (tie) or 0 (loss); soft win probabilities
between them are allowed. Ties are half a win, and never broken.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from prefloop.labelers.statistics.estimate import Estimate, wilson

Clusters = Sequence[object] | NDArray[Any]
"""Prompt id of each outcome [N], hashable."""

_PRIOR_WEIGHT = 0.25  # of each of the four pseudo-observations: one observation in all


def win_rate(
    outcomes: ArrayLike, clusters: Clusters | None = None, confidence: float = 0.95
) -> Estimate:
    """Mean of ``outcomes`` [N] with a Wilson interval that knows about clusters and ties.

    ``clusters`` [N] (prompt ids; default: each outcome is its own): several answers to one
    prompt tend to win or lose together, so they count for less than as many prompts. The interval
    is Wilson's score interval at the effective sample size p (1 - p) / V, V being the
    cluster-robust variance of the mean (Kish's design effect; as for proportions in surveys,
    Korn and Graubard 1998), at most N. With one win or loss per prompt that is Wilson's interval
    itself. Where V is 0 (all won, all lost, all tied) the number of clusters is the sample size,
    so the interval stays inside [0, 1] and has width even there.

    Raises ``ValueError`` for empty input, lengths that differ, or values outside [0, 1].
    """
    won, group = _checked(outcomes, clusters)
    n, rate = won.size, float(won.mean())
    variance = _cluster_variance_of_mean(won - rate, group)
    if variance > 0:
        effective = min(max(rate * (1 - rate) / variance, 1.0), float(n))
    else:
        effective = float(group.max() + 1)
    return Estimate(rate, *wilson(rate, effective, confidence), n)


def length_controlled_win_rate(
    outcomes: ArrayLike,
    length_difference: ArrayLike,
    clusters: Clusters | None = None,
    confidence: float = 0.95,
) -> Estimate:
    """The win rate had both policies written answers of equal length.

    AlpacaEval 2's model (Dubois et al. 2024, arXiv 2404.04475) for one pair of policies:
    P(win) = sigma(theta + phi * tanh(d / std(d))), d being ``length_difference`` [N], the
    policy's answer length minus its opponent's (any unit); the value is sigma(theta), the model
    at d = 0. AlpacaEval also has a difficulty per instruction, fitted on many models, which one
    pair of policies cannot tell apart from chance; it is left out.

    As AlpacaEval does, the fit is regularised, here by four pseudo-observations (a win and a loss
    at each end of the length term, a quarter of an observation each; Greenland and Mansournia
    2015). They keep it finite where all outcomes are equal or length separates them, and
    shrink the value towards 0.5 by the order of 1 / N. The interval is theta's, through
    sigma, with the larger of the model's and the cluster-robust standard error.

    Raises ``ValueError`` as ``win_rate`` does, and where the answers differ in length by the same
    amount in all comparisons: then no effect of length can be told from the policy's own.
    """
    import statsmodels.api as sm
    from scipy.special import expit
    from scipy.stats import norm

    won, group = _checked(outcomes, clusters)
    difference = np.asarray(length_difference, dtype=np.float64)
    if difference.shape != won.shape or not np.isfinite(difference).all():
        raise ValueError(f"{won.size} outcomes need as many finite length differences")
    spread = float(difference.std())
    if spread == 0 and difference[0] != 0:
        raise ValueError(
            f"all answers differ in length by {difference[0]:g}: length cannot be controlled for"
        )
    term = np.tanh(difference / spread) if spread else np.zeros_like(difference)
    design = np.column_stack([np.ones(won.size), term])
    prior = np.array([[1.0, -1.0], [1.0, -1.0], [1.0, 1.0], [1.0, 1.0]])
    weights = np.concatenate([np.ones(won.size), np.full(4, _PRIOR_WEIGHT)])
    fit = sm.GLM(
        np.concatenate([won, [0.0, 1.0, 0.0, 1.0]]),
        np.concatenate([design, prior]),
        family=sm.families.Binomial(),
        freq_weights=weights,
    ).fit()
    theta = float(fit.params[0])
    bread = np.asarray(fit.cov_params())
    residual = (won - expit(design @ fit.params))[:, None] * design
    sandwich = bread @ _cluster_meat(residual, group) @ bread
    model_variance = float(bread[0, 0])
    if np.ptp(won) == 0:  # no residuals to see clustering in: the clusters are the observations
        model_variance *= won.size / (group.max() + 1)
    half = float(norm.ppf((1 + confidence) / 2)) * np.sqrt(max(model_variance, sandwich[0, 0]))
    return Estimate(
        float(expit(theta)), float(expit(theta - half)), float(expit(theta + half)), won.size
    )


def _checked(
    outcomes: ArrayLike, clusters: Clusters | None
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Outcomes [N] and the index [N] of each one's cluster, numbered from 0."""
    won = np.asarray(outcomes, dtype=np.float64)
    if won.ndim != 1 or won.size == 0:
        raise ValueError(f"a win rate needs at least one comparison, got shape {won.shape}")
    if not ((won >= 0) & (won <= 1)).all():  # NaN fails this too
        raise ValueError("an outcome is 1 (win), 0.5 (tie), 0 (loss) or a probability between")
    if clusters is None:
        return won, np.arange(won.size)
    if len(clusters) != won.size:
        raise ValueError(f"{won.size} outcomes but {len(clusters)} clusters")
    numbers: dict[object, int] = {}
    return won, np.array([numbers.setdefault(c, len(numbers)) for c in clusters])


def _cluster_meat(scores: NDArray[np.float64], group: NDArray[np.int64]) -> NDArray[np.float64]:
    """Sum over clusters of the outer product of their summed ``scores`` [N, K] -> [K, K].

    G / (G - 1) corrects for few clusters where clusters have several members.
    """
    sums = np.zeros((int(group.max()) + 1, scores.shape[1]))
    np.add.at(sums, group, scores)
    clusters = len(sums)
    correction = clusters / (clusters - 1) if 1 < clusters < len(scores) else 1.0
    return correction * sums.T @ sums


def _cluster_variance_of_mean(deviations: NDArray[np.float64], group: NDArray[np.int64]) -> float:
    """Cluster-robust variance of a mean, from the deviations [N] from it.

    Exactly 0 when it is 0 up to rounding, so that callers can ask.
    """
    variance = float(_cluster_meat(deviations[:, None], group)[0, 0]) / deviations.size**2
    return 0.0 if variance < 1e-18 else variance
