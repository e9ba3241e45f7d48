"""Observations that belong together: the answers to one prompt tend to be alike.

The only place where it is counted for how much they count. A cluster is a prompt; its observations
may be as alike as they want, only prompts are taken to be independent of each other.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prefloop.data.arrays import Floats, Ints

Clusters = Sequence[object] | NDArray[Any]
"""Prompt id of each observation [N], hashable."""

_FULL_WEIGHT = 2.0
"""Clusters of equal observations that a design effect starts with, see ``design_effect``."""
_ROUNDING = 1e-18
_NOT_SPARSE = 8
"""Largest number, in multiples of how many there are, up to which they are counted, not sorted."""


@dataclass(frozen=True)
class Grouping:
    """Which of N observations belong to which of G clusters."""

    group: Ints
    """Index of each observation's cluster [N]."""
    sizes: Floats
    """Observations of each cluster [G]."""

    @classmethod
    def of(cls, clusters: Clusters | None, n: int) -> Grouping:
        """Of the names ``clusters`` [n]; null: each observation is its own.

        Raises ``ValueError`` where there are not as many names as observations.
        """
        if clusters is None:
            return cls(np.arange(n), np.ones(n))
        if len(clusters) != n:
            raise ValueError(f"{n} observations but {len(clusters)} clusters")
        if isinstance(clusters, np.ndarray):
            _, group = renumbered(clusters)
        else:
            numbers: dict[object, int] = {}
            group = np.array([numbers.setdefault(one, len(numbers)) for one in clusters], np.int64)
        return cls(group, np.bincount(group).astype(float))

    @property
    def alone(self) -> bool:
        """Whether each observation is a cluster."""
        return len(self.sizes) == len(self.group)

    @property
    def largest_effect(self) -> float:
        """The design effect of clusters whose observations are all alike: that of as many
        observations as there are clusters, where these are equally large."""
        return float((self.sizes**2).sum() / self.sizes.sum())

    @property
    def freedom(self) -> float:
        """Degrees of freedom of ``variance_of_mean``: G - 1 for clusters of one size, fewer where
        a few clusters have most observations (Bell and McCaffrey 2002, Survey Methodology 28,
        Satterthwaite's for a mean; Imbens and Kolesar 2016, Review of Economics and Statistics 98).
        """
        share = self.sizes / self.sizes.sum()
        if len(share) == 1:
            return 0.0
        of_others = share**2 / (1 - share)
        cross = of_others.sum() ** 2 - (of_others**2).sum()
        return float(1 / ((share**2).sum() + cross))

    def sums(self, values: Floats) -> Floats:
        """Sums over each cluster of ``values`` [N, K]: [G, K]."""
        found = np.zeros((len(self.sizes), values.shape[1]))
        np.add.at(found, self.group, values)
        return found

    def variance_of_mean(self, values: Floats) -> float:
        """Cluster-robust variance of the mean of ``values`` [N], infinite for one cluster.

        Bell and McCaffrey's CR2, which has no bias where the observations are independent; where
        each is its own cluster it is s^2 / N, and where clusters are of one size that of the mean
        of their means. Exactly 0 when it is 0 up to rounding, so that callers can ask.
        """
        if len(self.sizes) == 1:
            return float("inf")
        deviations = self.sums((values - values.mean())[:, None])[:, 0]
        left = 1 - self.sizes / self.sizes.sum()
        variance = float((deviations**2 / left).sum()) / len(values) ** 2
        return 0.0 if variance < _ROUNDING else variance

    def design_effect(self, ratio: float, deviations: Floats, confidence: float) -> float:
        """By how much the variance of a share is larger than that of independent observations: 1
        to ``largest_effect`` (Kish 1965, Survey Sampling).

        ``ratio`` is the cluster-robust variance over the independent one, and ``deviations`` [N]
        what both were computed from. The ratio is as uncertain as few clusters make it:

        - near 0 and 1 it rests on the few clusters that are not all won or all lost, so it is a
          mean with that of clusters of equal observations, which count as ``_FULL_WEIGHT``
          clusters, while those that there are count (sum Q)^2 / sum Q^2, Q being their sums of
          squared deviations;
        - a quantile of Student's t in place of the normal one, as an effect on the number of
          observations (Korn and Graubard 1998, Survey Methodology 24).

        Neither can make it larger than the effect of clusters of equal observations.
        """
        from scipy.special import ndtri, stdtrit

        largest = self.largest_effect
        if self.alone or len(self.sizes) == 1:
            return largest
        squares = self.sums(deviations[:, None] ** 2)[:, 0]
        total = float(squares.sum())
        seen = total**2 / float((squares**2).sum()) if total > _ROUNDING else 0.0
        known = seen * ratio if seen else 0.0
        blended = (known + _FULL_WEIGHT * largest) / (seen + _FULL_WEIGHT)
        middle = (1 + confidence) / 2
        stretch = float(stdtrit(self.freedom, middle) / ndtri(middle)) ** 2
        return min(max(blended * stretch, 1.0), largest)


def renumbered(values: NDArray[Any]) -> tuple[NDArray[Any], Ints]:
    """The different ones of ``values`` [N] in ascending order, and the number of each value among
    them [N]. Whole numbers that are not much larger than N are not sorted for that."""
    if values.dtype.kind in "iu" and len(values):
        most = int(values.max())
        if values.min() >= 0 and most < _NOT_SPARSE * len(values):
            there = np.bincount(values, minlength=most + 1) > 0
            return np.flatnonzero(there), (np.cumsum(there) - 1)[values]
    distinct, number = np.unique(values, return_inverse=True)
    return distinct, number
