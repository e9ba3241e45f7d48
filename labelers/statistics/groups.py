"""Groups of observations side by side: how right each is, by how much that beats a baseline, and
which of them differ from the rest.

Many groups are many chances to be wrong, so p-values are Holm's (1979, Scandinavian Journal of
Statistics 6): where no group differs, 5 of 100 tables have a p below 0.05 at all.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from prefloop.data.arrays import Floats, Ints
from prefloop.labelers.statistics.clusters import Clusters, Grouping
from prefloop.labelers.statistics.estimate import Estimate
from prefloop.labelers.statistics.winrate import win_rate

DRAWS = 9_999
"""Shuffles behind a p-value; of 100 groups the smallest is 0.01 after Holm's correction."""
_LEAST_DRAWS = 2_999
"""Of very many observations, where the smallest of 100 groups is 0.033."""
_SHUFFLED = 200_000_000
"""Observations that are shuffled in all, before draws are saved: twenty seconds or so."""
_AT_ONCE = 4_000_000
_ROUNDING = 1e-12


@dataclass(frozen=True)
class GroupFigures:
    """One group of observations."""

    group: str
    share: Estimate
    """Mean of its outcomes."""
    baseline: Estimate
    """Mean of the baseline's outcomes on the same observations."""
    difference: Estimate
    """Of both, paired: above 0 where the baseline is beaten."""
    p: float | None
    """That a share differs so much from the rest's by chance; null where there is no rest."""
    p_holm: float | None
    """The same, corrected for the number of groups."""


def compare_groups(
    outcomes: ArrayLike,
    baseline: ArrayLike,
    groups: Sequence[str],
    clusters: Clusters | None = None,
    seed: int = 0,
    draws: int | None = None,
) -> list[GroupFigures]:
    """The ``groups`` [N] of ``outcomes`` [N] (1, 0.5 or 0) beside those of a ``baseline`` [N], in
    the order in which they first come.

    Intervals are those of ``win_rate``, which for the paired difference is Tango's, with
    ``clusters`` [N] (prompt ids; default: each is its own) as what repeats. A group is compared
    with all others by a permutation test on the difference of their means: ``draws`` times (null:
    ``DRAWS``, and fewer of more than 20,000 observations) the clusters are shuffled over the
    groups, and within a cluster that has observations of several groups these observations. That is
    exact where the group says nothing, few clusters, ties and skewed shares included.

    Raises ``ValueError`` as ``win_rate`` does.
    """
    won, other = (np.asarray(one, dtype=np.float64) for one in (outcomes, baseline))
    if not len(won) == len(other) == len(groups):
        raise ValueError(f"{len(won)} outcomes, {len(other)} of the baseline, {len(groups)} groups")
    names = list(dict.fromkeys(groups))
    codes = _codes(groups)
    group = Grouping.of(clusters, won.size).group
    chances = group_chances(won, groups, clusters, seed, draws)
    found = []
    for at, name in enumerate(names):
        rows = codes == at
        share, base = win_rate(won[rows], group[rows]), win_rate(other[rows], group[rows])
        halves = win_rate((1 + won[rows] - other[rows]) / 2, group[rows])
        low, middle, high = (2 * one - 1 for one in (halves.low, halves.value, halves.high))
        p, p_holm = (None, None) if chances is None else (float(one[at]) for one in chances)
        difference = Estimate(middle, low, high, share.n)
        found.append(GroupFigures(name, share, base, difference, p, p_holm))
    return found


def group_chances(
    outcomes: ArrayLike,
    groups: Sequence[str],
    clusters: Clusters | None = None,
    seed: int = 0,
    draws: int | None = None,
) -> tuple[Floats, Floats] | None:
    """Of each group the p-value that ``compare_groups`` gives, and Holm's; null for one group."""
    won, codes = np.asarray(outcomes, dtype=np.float64), _codes(groups)
    group, count = Grouping.of(clusters, won.size).group, int(codes.max()) + 1
    if count < 2:
        return None
    draw = np.random.default_rng(seed)
    if draws is None:
        draws = min(DRAWS, max(_LEAST_DRAWS, _SHUFFLED // len(won)))
    values, sizes, labels, owner = _units(won, codes, group)
    seen = np.abs(_gaps(labels[None], values, sizes, count))[0]
    beyond = np.zeros(count, np.int64)
    for shuffled in _shuffles(labels, owner, draw, draws):
        gaps = np.abs(_gaps(shuffled, values, sizes, count))
        beyond += (gaps >= seen - _ROUNDING).sum(0)
    p = (1 + beyond) / (1 + draws)
    return p, holm(p)


def holm(p: Floats) -> Floats:
    """The p-values of a family [K], each corrected for its size.

    Written out, since statsmodels' collects the garbage of the whole process at every call.
    """
    order = np.argsort(p, kind="stable")
    stepped = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1))
    found = np.empty(len(p))
    found[order] = np.minimum(stepped, 1.0)
    return found


def _codes(groups: Sequence[str]) -> Ints:
    places: dict[str, int] = {}
    return np.array([places.setdefault(group, len(places)) for group in groups], np.int64)


def _units(won: Floats, codes: Ints, group: Ints) -> tuple[Floats, Floats, Ints, Ints]:
    """What is shuffled: sum of outcomes, size and label of each unit, and what it may only be
    exchanged within. A cluster of one group is a unit (of owner 0), and so is every observation of
    a cluster of several groups (whose owner is that cluster)."""
    clusters = int(group.max()) + 1
    lowest, highest = np.full(clusters, codes.max()), np.zeros(clusters, np.int64)
    np.minimum.at(lowest, group, codes)
    np.maximum.at(highest, group, codes)
    one_group = lowest == highest
    mixed = np.flatnonzero(~one_group[group])
    mixed = mixed[np.argsort(group[mixed], kind="stable")]
    sums = np.bincount(group, weights=won, minlength=clusters)[one_group]
    sizes = np.bincount(group, minlength=clusters)[one_group]
    return (
        np.concatenate([sums, won[mixed]]),
        np.concatenate([sizes, np.ones(len(mixed))]),
        np.concatenate([lowest[one_group], codes[mixed]]),
        np.concatenate([np.zeros(len(sums), np.int64), 1 + group[mixed]]),
    )


def _shuffles(
    labels: Ints, owner: Ints, draw: np.random.Generator, draws: int
) -> Iterator[NDArray[np.int64]]:
    """``labels`` shuffled within their owners, ``draws`` times, some at once: [D, units]."""
    at_once = max(1, _AT_ONCE // len(labels))
    for start in range(0, draws, at_once):
        times = min(at_once, draws - start)
        # Sorted by owner already, so that sorting by owner and a random fraction stays within it.
        order = np.argsort(owner + draw.random((times, len(labels))), axis=1)
        yield labels[order]


def _gaps(labels: NDArray[np.int64], values: Floats, sizes: Floats, count: int) -> Floats:
    """Mean of each group minus that of all others [D, count]."""
    times = len(labels)
    flat = (labels + count * np.arange(times)[:, None]).ravel()

    def totals(weights: Floats) -> Floats:
        of_each = np.bincount(flat, weights=np.tile(weights, times), minlength=times * count)
        found: Floats = np.asarray(of_each, np.float64).reshape(times, count)
        return found

    inside, members = totals(values), totals(sizes)
    outside, others = values.sum() - inside, sizes.sum() - members
    gaps: Floats = inside / members - outside / others
    return gaps
