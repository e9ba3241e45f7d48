"""How often one policy's answers are preferred to another's, and how sure that is.

Pure functions on arrays. An outcome is 1 (win), 0.5 (tie) or 0 (loss); soft win probabilities
between them are allowed. Ties are half a win, and never broken.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

from prefloop.data.arrays import Floats
from prefloop.labelers.statistics.clusters import Clusters, Grouping
from prefloop.labelers.statistics.estimate import Estimate, wilson

LENGTH_GAP = "length_gap"
"""Metric of ``length_gap``."""

_PRIOR_WEIGHT = 0.25  # of each of the four pseudo-observations: one observation in all
_ROUNDING = 1e-12


def win_rate(
    outcomes: ArrayLike, clusters: Clusters | None = None, confidence: float = 0.95
) -> Estimate:
    """Mean of ``outcomes`` [N] with a score interval that knows about ties and clusters.

    Ties: the rate is (1 + wins - losses) / 2 of shares, and a difference of two shares of the same
    observations has Tango's score interval (Tango 1998, Statistics in Medicine 17), whose variance
    falls with the share of ties that is likeliest at each end. Without ties that is Wilson's
    interval; where all were ties it has width too. A soft outcome counts as partly a tie, which is
    never too narrow.

    ``clusters`` [N] (prompt ids; default: each outcome is its own): several answers to one
    prompt tend to win or lose together, so they count for less than as many prompts. All counts
    are divided by the design effect of ``Grouping.design_effect``: between 1 and that of clusters
    whose outcomes are all equal, which is also that of a single cluster and where all outcomes are.

    Raises ``ValueError`` for empty input, lengths that differ, or values outside [0, 1].
    """
    won, grouping = _checked(outcomes, clusters)
    n, rate = won.size, float(won.mean())
    deviations = won - rate
    alone = float((deviations**2).sum()) / max(n * (n - 1), 1)
    ratio = grouping.variance_of_mean(won) / alone if alone > 0 else 0.0
    effect = grouping.design_effect(ratio, deviations, confidence)
    decided = np.abs(2 * won - 1)
    wins = float(decided[won > 0.5].sum()) / effect
    losses = float(decided[won < 0.5].sum()) / effect
    low, high = _tango(wins, losses, n / effect, confidence)
    # At 0 and 1 a bound equals the rate; min and max only undo the rounding there.
    return Estimate(rate, min(low, rate), max(high, rate), n)


def _tango(wins: float, losses: float, n: float, confidence: float) -> tuple[float, float]:
    """Bounds of (1 + d) / 2, d being the share of ``wins`` minus that of ``losses`` of ``n``: the d
    at which Tango's score is the normal quantile. None of the numbers need be whole."""
    if n - wins - losses <= _ROUNDING * n:
        return wilson(wins / (wins + losses), n, confidence)
    from scipy.optimize import brentq
    from scipy.special import ndtri

    z2 = float(ndtri((1 + confidence) / 2)) ** 2
    if wins + losses == 0:
        half = z2 / (n + z2) / 2
        return 0.5 - half, 0.5 + half
    seen = (wins - losses) / n

    def excess(d: float) -> float:
        b = (2 * n - wins + losses) * d - wins - losses
        # The likeliest share of losses where wins exceed them by d.
        lost = (math.sqrt(max(b * b + 8 * n * losses * d * (1 - d), 0.0)) - b) / (4 * n)
        return (seen - d) ** 2 * n - z2 * (2 * max(lost, -d, 0.0) + d * (1 - d))

    low, high = (float(brentq(excess, seen, beyond, xtol=_ROUNDING)) for beyond in (-1.0, 1.0))
    return (1 + low) / 2, (1 + high) / 2


def length_gap(length_difference: ArrayLike) -> float:
    """Mean of ``length_difference`` [N] in standard deviations of it, negative where the policy's
    answers are shorter; 0 where all are equally long.

    Beyond 1 (or -1) few comparisons, or none, are of equally long answers, and the
    length-controlled win rate says what the model makes of those that there are: it extrapolates.
    """
    difference = np.asarray(length_difference, dtype=np.float64)
    spread = float(difference.std())
    return float(difference.mean()) / spread if spread > 0 else 0.0


def extrapolates(gap: float) -> str | None:
    """What is to be said of a length-controlled win rate at this ``length_gap``, if anything."""
    if abs(gap) <= 1:
        return None
    way = "longer" if gap > 0 else "shorter"
    return (
        f"answers are {way} by {abs(gap):.1f} times the spread of that difference: few are equally "
        "long, and the length-controlled win rate is an extrapolation"
    )


def length_controlled_win_rate(
    outcomes: ArrayLike,
    length_difference: ArrayLike,
    clusters: Clusters | None = None,
    confidence: float = 0.95,
) -> Estimate:
    """The win rate had both policies written answers of equal length.

    AlpacaEval 2's model (Dubois et al. 2024, arXiv 2404.04475) for one pair of policies:
    P(win) = sigma(theta + phi * tanh(d / std(d))), d being ``length_difference`` [N], the
    policy's answer length minus its opponent's, in characters: tokens of two tokenizers do not
    compare; the value is sigma(theta), the model at d = 0, see ``length_gap``. AlpacaEval also has
    a difficulty per instruction, fitted on many models, which one pair of policies cannot tell
    apart from chance; it is left out.

    As AlpacaEval does, the fit is regularised, here by four pseudo-observations (a win and a loss
    at each end of the length term, a quarter of an observation each; Greenland and Mansournia
    2015). They keep it finite where all outcomes are equal or length separates them, and
    shrink the value towards 0.5 by the order of 1 / N. The interval is theta's, through
    sigma. Its variance is the larger of the robust one and the model's, of which the part that
    ties take away is left out (z^2 decided pseudo-observations keep what is left above 0, as in
    the interval of Agresti and Coull 1998), times the design effect of the clusters, as in
    ``win_rate``.

    Raises ``ValueError`` as ``win_rate`` does, and where the answers differ in length by the same
    amount in all comparisons: then no effect of length can be told from the policy's own.
    """
    import statsmodels.api as sm
    from scipy.special import expit, ndtri

    won, grouping = _checked(outcomes, clusters)
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
    z = float(ndtri((1 + confidence) / 2))
    expected = expit(design @ fit.params)
    # What each outcome adds to theta: influence functions, whose sums over clusters are its errors.
    influence = (won - expected) * (design @ bread[0])
    alone, together = float((influence**2).sum()), _sum_of_squares(influence, grouping)
    of_ties = float((won * (1 - won)).sum())
    left = 1 - of_ties / (float((expected * (1 - expected)).sum()) + z**2 / 4)
    blind = np.ptp(won) == 0  # no residuals to see clustering in
    effect = grouping.design_effect(
        together / alone if alone > 0 and not blind else 0.0,
        np.zeros(won.size) if blind else influence,
        confidence,
    )
    half = z * math.sqrt(max(float(bread[0, 0]) * left, alone) * effect)
    return Estimate(
        float(expit(theta)), float(expit(theta - half)), float(expit(theta + half)), won.size
    )


def _sum_of_squares(influence: Floats, grouping: Grouping) -> float:
    """Of the clusters' sums; G / (G - 1) corrects for few clusters of several members."""
    clusters = len(grouping.sizes)
    correction = clusters / (clusters - 1) if clusters > 1 and not grouping.alone else 1.0
    return correction * float((grouping.sums(influence[:, None]) ** 2).sum())


def _checked(
    outcomes: ArrayLike, clusters: Clusters | None
) -> tuple[NDArray[np.float64], Grouping]:
    """Outcomes [N] and their clusters."""
    won = np.asarray(outcomes, dtype=np.float64)
    if won.ndim != 1 or won.size == 0:
        raise ValueError(f"a win rate needs at least one comparison, got shape {won.shape}")
    if not ((won >= 0) & (won <= 1)).all():  # NaN fails this too
        raise ValueError("an outcome is 1 (win), 0.5 (tie), 0 (loss) or a probability between")
    return won, Grouping.of(clusters, won.size)
