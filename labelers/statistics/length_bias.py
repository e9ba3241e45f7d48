"""Are chosen answers longer? Shares and rank correlations, with their definitions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from prefloop.labelers.statistics.clusters import Clusters
from prefloop.labelers.statistics.winrate import win_rate

Lengths = npt.NDArray[np.integer[Any]]

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)


@dataclass(frozen=True)
class Summary:
    """Lengths of some answers."""

    mean: float
    quantiles: tuple[float, ...]
    """At :data:`QUANTILES`, interpolated linearly."""
    longest: int


@dataclass(frozen=True)
class LengthBias:
    """Lengths of the chosen and the rejected answers of some pairs, in one unit."""

    unit: str
    chosen: Summary
    rejected: Summary
    chosen_longer: int
    rejected_longer: int
    equal: int
    share: float | None
    """Share of chosen-is-longer among the pairs of unequal length; null where there is none."""
    low: float | None
    """Ends of the 95% interval of ``share``, by prompts."""
    high: float | None
    rank_correlation: float | None
    """Spearman's rho, over all 2N answers, of length and being chosen (1 or 0); from -1 to 1,
    ties have mid-ranks. Null where all lengths are equal. It does not know which answers belong
    together, so prompts that ask for long answers dilute it."""
    rank_biserial: float | None
    """Matched-pairs rank-biserial correlation (Kerby 2014, Comprehensive Psychology 3:11.IT.3.1,
    the simple difference formula on Wilcoxon's signed ranks): (R+ - R-) / (R+ + R-), where R+ is
    the sum of the ranks of \\|chosen - rejected\\| over the pairs with the longer chosen answer and
    R- over the others; pairs of equal length are left out. 1: chosen is always longer, -1: always
    shorter. Null where no pair is of unequal length."""

    @property
    def words(self) -> str:
        """What the interval of the share says."""
        if self.share is None or self.low is None or self.high is None:
            return "no pair of unequal length"
        if self.low > 0.5:
            return "chosen answers are longer"
        return "chosen answers are shorter" if self.high < 0.5 else "no clear length bias"


def length_bias(
    unit: str, chosen: Lengths, rejected: Lengths, prompts: Clusters | None = None
) -> LengthBias | None:
    """Compare the lengths [N] of chosen and rejected answers; None for no pairs. ``prompts`` [N]:
    those that they answer (default: each its own)."""
    from scipy.stats import rankdata, spearmanr

    if not len(chosen):
        return None
    more = chosen.astype(np.int64) - rejected
    longer, shorter = int((more > 0).sum()), int((more < 0).sum())
    share = low = high = biserial = correlation = None
    if longer + shorter:
        rows = np.flatnonzero(more)
        group = None if prompts is None else np.asarray(prompts)[rows]
        found = win_rate(more[rows] > 0, group)
        share, low, high = found.value, found.low, found.high
        unequal = more[more != 0]
        ranks = rankdata(np.abs(unequal))
        biserial = float(ranks @ np.sign(unequal) / ranks.sum())
    both = np.concatenate([chosen, rejected])
    if both.min() != both.max():
        preferred = np.repeat([1, 0], len(chosen))
        correlation = float(spearmanr(both, preferred).statistic)
    return LengthBias(
        unit=unit,
        chosen=_summary(chosen),
        rejected=_summary(rejected),
        chosen_longer=longer,
        rejected_longer=shorter,
        equal=len(chosen) - longer - shorter,
        share=share,
        low=low,
        high=high,
        rank_correlation=correlation,
        rank_biserial=biserial,
    )


def _summary(lengths: Lengths) -> Summary:
    return Summary(
        mean=float(lengths.mean()),
        quantiles=tuple(float(value) for value in np.quantile(lengths, QUANTILES)),
        longest=int(lengths.max()),
    )
