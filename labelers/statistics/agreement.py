"""How far annotators agree: people, judges, or both in one table.

Every statistic takes :class:`Ratings`. The value is a library's (scikit-learn, statsmodels,
krippendorff); the interval is a percentile bootstrap over items, the unit that repeats: an item is
drawn with all its labels, and where items are pairs of a prompt's answers, a prompt with all its
items. Items with the same labels are interchangeable, so what is drawn is how often each pattern of
labels occurs, and a hundred thousand items cost no more than a hundred. A bootstrap knows nothing
of what did not happen: where all of twenty items agree, all of every resample do. So no interval is
narrower than what the score interval of the agreement that was seen makes of it, see ``_Seen``.

Kappa and alpha compare the agreement with that of chance, (observed - chance) / (1 - chance). Where
only one label was ever used, chance agreement is certain and that is 0 / 0: the value is null and
``reason`` says why, although everybody agrees (raw agreement is 1). Resamples that hit this case
are left out of the interval, and ``undefined`` counts them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cached_property
from itertools import combinations
from typing import Any, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from prefloop.data.arrays import Bools, Floats, Ints
from prefloop.labelers.statistics.clusters import Clusters, Grouping, renumbered
from prefloop.labelers.statistics.estimate import wilson

MeasurementLevel = Literal["nominal", "ordinal", "interval", "ratio"]
KappaWeights = Literal["linear", "quadratic"]
"""How far labels that differ by several places count as further apart: by the number of places
between them, or by its square."""

MISSING = -1
_MOST_CODES = 1 << 20
_MOST_NUMBERS = 1 << 62
MOST_LABELS = 100
"""Distinct labels at most: the statistics are about categories."""

ONE_LABEL = "only one label was ever used: agreement by chance is certain, so this is 0 / 0"
NO_COMMON_ITEM = "no item has labels of both"
NO_PAIRS = "no item has two labels"


@dataclass(frozen=True)
class Ratings:
    """Labels of R annotators on N items."""

    annotators: tuple[str, ...]
    labels: tuple[str, ...]
    """The K labels; ascending where they have an order."""
    codes: NDArray[np.integer[Any]]
    """[N, R]: index of the label, or MISSING."""
    values: Floats | None = None
    """[K] numbers behind the labels, for the levels ``interval`` and ``ratio``."""
    ordered: bool = False
    """Whether the labels have an order, for the level ``ordinal``."""
    mirrored: bool = False
    """Whether the first label is the opposite of the last, and so on inwards, and it means nothing
    which of two opposites is which (a and b of a pair): each item then counts both ways round,
    half each, so that agreement by chance does not depend on what was called a."""
    prompts: Clusters | None = None
    """[N]: what items (pairs) are about; those of one prompt are drawn together. Null: each item is
    about something of its own."""

    @property
    def from_nothing(self) -> bool:
        """Whether the labels are amounts of something, of which 0 is none at all, as far as can be
        told: numbers, none of them below it."""
        return self.values is not None and not self.mirrored and bool((self.values >= 0).all())

    @property
    def counts(self) -> Ints:
        """How many annotators gave each label to each item [N, K]."""
        found: Ints = _counts_of(self.alike.codes, len(self.labels))[self.alike.number]
        return found

    @cached_property
    def alike(self) -> Alike:
        """The items, those with the same labels told once."""
        return Alike.of(self.codes, len(self.labels))

    @cached_property
    def prompt_numbers(self) -> Ints | None:
        """The number of each item's prompt [N], where ``prompts`` are known."""
        if self.prompts is None:
            return None
        return Grouping.of(self.prompts, len(self.codes)).group


@dataclass(frozen=True)
class Alike:
    """Items by what was said of them: many items have few makings, and what follows from labels
    alone is worked out once for each of these."""

    codes: NDArray[np.integer[Any]]
    """The D different rows of labels [D, R]; of many annotators or labels, the row of each item."""
    number: Ints
    """Which of them each item has [N]."""

    @classmethod
    def of(cls, codes: NDArray[np.integer[Any]], labels: int) -> Alike:
        """Of items with ``codes`` [N, R], places among ``labels`` or MISSING."""
        base, annotators = labels + 1, codes.shape[1]
        if base**annotators > _MOST_CODES:
            return cls(codes, np.arange(len(codes)))
        whole = np.zeros(len(codes), np.int64)
        for column in range(annotators):
            whole = whole * base + codes[:, column] + 1
        there, number = renumbered(whole)
        places = base ** np.arange(annotators)[::-1]
        return cls(there[:, None] // places % base - 1, number)

    @cached_property
    def times(self) -> Ints:
        """How many items have each [D]."""
        return np.bincount(self.number, minlength=len(self.codes))

    def chosen(self, rows: Bools) -> tuple[Bools, Ints]:
        """Which items [N] have one of ``rows`` [D], and which row each of these has."""
        items = rows[self.number]
        return items, self.number[items]


@dataclass(frozen=True)
class Agreement:
    """One statistic; ``value`` is null where it is undefined, and ``reason`` says why."""

    value: float | None
    low: float | None = None
    high: float | None = None
    """Ends of the 95% interval; null where too few items or resamples allow one."""
    n: int = 0
    """Items that it is computed from."""
    undefined: int = 0
    """Resamples in which it was 0 / 0."""
    reason: str | None = None

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


@dataclass(frozen=True)
class Majority:
    """How the annotators' votes on the items come out; nothing breaks a tie."""

    counts: dict[str, int]
    """Items on which more annotators gave this label than any other."""
    none: int
    """Items without such a label."""
    unlabelled: int
    """Items without any label."""


def majority(ratings: Ratings) -> Majority:
    """The plurality label of each item, counted."""
    counts, times = _counts_of(ratings.alike.codes, len(ratings.labels)), ratings.alike.times
    top = counts.max(axis=1, initial=0)
    alone = (counts == top[:, None]).sum(axis=1) == 1
    labelled = top > 0
    winners = np.zeros(len(ratings.labels), np.int64)
    np.add.at(winners, counts.argmax(axis=1)[alone & labelled], times[alone & labelled])
    return Majority(
        dict(zip(ratings.labels, winners.tolist(), strict=True)),
        none=int(times[labelled & ~alone].sum()),
        unlabelled=int(times[~labelled].sum()),
    )


def raw_agreement(ratings: Ratings, *, resamples: int = 1000, seed: int = 0) -> Agreement:
    """Share of equal labels among all pairs of annotators, over all items that both labelled."""
    return _share(ratings, _equal_pairs, resamples, seed)


def unanimous_share(ratings: Ratings, *, resamples: int = 1000, seed: int = 0) -> Agreement:
    """Share of the items with at least two labels whose labels are all the same."""

    def unanimous(rows: Ints) -> tuple[Floats, Floats]:
        given = rows.sum(axis=1)
        several = (given >= 2).astype(float)
        return several * (rows.max(axis=1, initial=0) == given), several

    return _share(ratings, unanimous, resamples, seed)


def _equal_pairs(rows: Ints) -> tuple[Floats, Floats]:
    """Of items with these counts of labels [U, K] the pairs of equal labels, and of any [U]."""
    return _choose_2(rows).sum(axis=1), _choose_2(rows.sum(axis=1))


def _share(
    ratings: Ratings,
    tell: Callable[[Ints], tuple[Floats, Floats]],
    resamples: int,
    seed: int,
) -> Agreement:
    """Sum over the items of the first that ``tell`` says of their counts, over that of the
    second."""
    counts, number = _counts(ratings), ratings.alike.number
    patterns = _Patterns.of(counts, number, ratings.prompt_numbers)
    times, (same, counted) = patterns.times, tell(patterns.rows)
    n = int(times[counted > 0].sum())
    if not n:
        return Agreement(None, reason=NO_PAIRS)
    same_of, counted_of = (one[number] for one in tell(counts))
    rows = counted_of > 0
    prompts = _of_items(ratings.prompt_numbers, rows)
    seen = _Seen.of(same_of[rows] / counted_of[rows], prompts)

    def share(weights: Floats) -> Floats:
        return _ratio(weights @ same, weights @ counted)

    value = float(share(times[None].astype(float))[0])
    return _interval(value, n, patterns.draws(resamples, seed), share, seen)


def cohen_kappa(
    ratings: Ratings,
    first: int,
    second: int,
    *,
    weights: KappaWeights | None = None,
    resamples: int = 1000,
    seed: int = 0,
) -> Agreement:
    """Cohen's kappa of two annotators (columns), over the items that both labelled.

    Cohen 1960, Educational and Psychological Measurement 20, eq. 1; with ``weights``, which need
    labels with an order, Cohen 1968, Psychological Bulletin 70, eq. 2. Raises ``ValueError`` where
    the labels have none.
    """
    if weights and not ratings.ordered:
        raise ValueError("the labels have no order")
    alike = ratings.alike
    one, other = (alike.codes[:, column].astype(np.int64) for column in (first, second))
    items, number = alike.chosen((one != MISSING) & (other != MISSING))
    n = len(number)
    if not n:
        return Agreement(None, reason=NO_COMMON_ITEM)
    size = len(ratings.labels)
    if ratings.mirrored:
        labels = np.stack([one, other], axis=1)
        one, other = _same_way(labels, size - 1 - labels).T
    cell = (one * size + other)[number]
    table = np.bincount(cell, minlength=size * size).reshape(size, size)
    counted = both_ways(table) if ratings.mirrored else table
    value = _kappa_of_counts(counted, weights)
    if value is None:
        return Agreement(None, n=n, reason=ONE_LABEL)
    cells = np.eye(size * size, dtype=np.int64)
    prompts = _of_items(ratings.prompt_numbers, items)
    patterns = _Patterns.numbered(cells, cell, prompts)

    def kappa(drawn: Floats) -> Floats:
        tables = drawn.reshape(-1, size, size)
        return kappa_of_tables(both_ways(tables) if ratings.mirrored else tables, weights)

    seen = None
    if weights is None or value == 1:
        seen = _Seen.of((one == other)[number], prompts, _chance_of(counted))
    return _interval(value, n, patterns.draws(resamples, seed), kappa, seen)


def clustered_kappa(
    one: Ints, other: Ints, clusters: Ints, *, labels: int, resamples: int = 1000, seed: int = 0
) -> Agreement:
    """Cohen's kappa of two annotators' labels [N], of ``labels`` many, where the items of a cluster
    [N] (the pairs of a prompt) tend to be labelled alike: whole clusters are drawn."""
    n = len(one)
    if not n:
        return Agreement(None, reason=NO_COMMON_ITEM)
    value = kappa_of_labels(one, other, labels)
    if value is None:
        return Agreement(None, n=n, reason=ONE_LABEL)
    cells = np.eye(labels * labels, dtype=np.int64)
    group = Grouping.of(clusters, n).group
    patterns = _Patterns.numbered(cells, one * labels + other, group)

    def kappa(weights: Floats) -> Floats:
        return kappa_of_tables(weights.reshape(-1, labels, labels))

    table = np.bincount(one * labels + other, minlength=labels**2).reshape(labels, labels)
    seen = _Seen.of(one == other, group, _chance_of(table))
    return _interval(value, n, patterns.draws(resamples, seed), kappa, seen)


def kappa_of_labels(
    one: Ints, other: Ints, size: int, weights: KappaWeights | None = None
) -> float | None:
    """Cohen's kappa of two annotators' labels [N], 0 to ``size`` - 1, of the same items; null where
    only one label was ever used."""
    cell = np.asarray(one, np.int64) * size + other
    return _kappa_of_counts(np.bincount(cell, minlength=size**2).reshape(size, size), weights)


def kappa_of_mirrored(
    one: Ints, other: Ints, size: int, weights: KappaWeights | None = None
) -> float | None:
    """As ``kappa_of_labels`` for labels of which each and its opposite (the first and the last, and
    so on) mean the same: each item counts both ways round."""
    mine, theirs = (np.concatenate([said, size - 1 - said]) for said in (one, other))
    return kappa_of_labels(mine, theirs, size, weights)


def _kappa_of_counts(table: Ints, weights: KappaWeights | None) -> float | None:
    """As ``kappa_of_labels``, of how often each label met each other one [labels, labels]."""
    from sklearn.metrics import cohen_kappa_score

    if ((table.sum(axis=0) + table.sum(axis=1)) > 0).sum() < 2:
        return None
    one, other = np.nonzero(table)
    # All labels are named, used or not: the places between two of them are what is weighted.
    found = cohen_kappa_score(
        one, other, labels=np.arange(len(table)), weights=weights, sample_weight=table[one, other]
    )
    return float(found)


_Counted = TypeVar("_Counted", Floats, Ints)


def both_ways(tables: _Counted) -> _Counted:
    """Confusion tables [..., labels, labels] with each item counted both ways round."""
    return tables + tables[..., ::-1, ::-1]


def kappa_of_tables(tables: Floats, weights: KappaWeights | None = None) -> Floats:
    """Cohen's kappa [T] of confusion tables [T, labels, labels] of counts; NaN where both
    annotators always say the same one thing."""
    shares = tables / tables.sum(axis=(1, 2), keepdims=True)
    chance = shares.sum(axis=2)[:, :, None] * shares.sum(axis=1)[:, None, :]
    places = np.arange(tables.shape[1])
    between = np.abs(places[:, None] - places)
    apart = between**2 if weights == "quadratic" else between if weights else between > 0
    return 1 - _ratio((shares * apart).sum(axis=(1, 2)), (chance * apart).sum(axis=(1, 2)))


def cohen_kappas(
    ratings: Ratings, *, weights: KappaWeights | None = None, resamples: int = 1000, seed: int = 0
) -> dict[tuple[str, str], Agreement]:
    """Cohen's kappa of every pair of annotators. See ``cohen_kappa``."""
    names = ratings.annotators
    how: dict[str, Any] = {"weights": weights, "resamples": resamples, "seed": seed}
    return {
        (names[i], names[j]): cohen_kappa(ratings, i, j, **how)
        for i, j in combinations(range(len(names)), 2)
    }


def fleiss_kappa(ratings: Ratings, *, resamples: int = 1000, seed: int = 0) -> Agreement:
    """Fleiss' kappa, which needs the same number of labels on each item.

    Computed from the items with the most frequent number of labels (at least two; of equally
    frequent numbers the larger); ``n`` says how many these are. Fleiss 1971, Psychological Bulletin
    76, eq. 7.
    """
    from statsmodels.stats.inter_rater import fleiss_kappa as of_table

    alike, counts = ratings.alike, _counts(ratings)
    given = counts.sum(axis=1)
    items_with = np.bincount(given, weights=alike.times, minlength=2)
    items_with[:2] = 0
    if not items_with.any():
        return Agreement(None, reason=NO_PAIRS)
    raters = int(len(items_with) - 1 - np.argmax(items_with[::-1]))
    items, number = alike.chosen(given == raters)
    complete = counts[number]
    n = len(complete)
    counted = np.concatenate([complete, complete[:, ::-1]]) if ratings.mirrored else complete
    if (counted.sum(axis=0) > 0).sum() == 1:
        return Agreement(None, n=n, reason=ONE_LABEL)
    prompts = _of_items(ratings.prompt_numbers, items)
    patterns = _Patterns.of(counts, number, prompts)
    same = _choose_2(patterns.rows).sum(axis=1) / _choose_2(np.array([raters]))[0]

    def kappa(weights: Floats) -> Floats:
        items = weights.sum(axis=1)
        used = weights @ patterns.rows / (items[:, None] * raters)
        if ratings.mirrored:
            used = (used + used[:, ::-1]) / 2
        return _above_chance(weights @ same / items, (used**2).sum(axis=1))

    same_of, pairs_of = _equal_pairs(complete)
    used = counted.sum(axis=0) / counted.sum()
    seen = _Seen.of(same_of / pairs_of, prompts, float((used**2).sum()))
    return _interval(float(of_table(counted)), n, patterns.draws(resamples, seed), kappa, seen)


def krippendorff_alpha(
    ratings: Ratings, level: MeasurementLevel = "nominal", *, resamples: int = 1000, seed: int = 0
) -> Agreement:
    """Krippendorff's alpha, 1 - observed / expected disagreement; labels may be missing.

    Computed from the items with at least two labels. Krippendorff 2011, Computing Krippendorff's
    Alpha-Reliability, sections C and E. Raises ``ValueError`` where the labels have no order, or
    no numbers, that ``level`` would need.
    """
    import krippendorff

    if level in ("interval", "ratio") and ratings.values is None:
        raise ValueError("the labels are no numbers: there is no interval between them")
    if level == "ratio" and not ratings.from_nothing:
        raise ValueError("there are labels below 0, or opposites: they have no ratio")
    if level == "ordinal" and not ratings.ordered:
        raise ValueError("the labels have no order")
    counts = _counts(ratings)
    several = counts.sum(axis=1) >= 2
    items, number = ratings.alike.chosen(several)
    n = len(number)
    if not n:
        return Agreement(None, reason=NO_PAIRS)
    used = (counts[several] > 0).any(axis=0)
    if ratings.mirrored:
        used |= used[::-1]
    if used.sum() == 1:
        return Agreement(None, n=n, reason=ONE_LABEL)
    domain = np.arange(len(ratings.labels), dtype=float)[used]
    if level in ("interval", "ratio"):
        assert ratings.values is not None
        domain = ratings.values[used]
    prompts = _of_items(ratings.prompt_numbers, items)
    found = _Patterns.of(counts[:, used], number, prompts)
    patterns = found.rows
    if ratings.mirrored:
        patterns = np.concatenate([patterns, patterns[:, ::-1]])

    def alpha(weights: Floats) -> Floats:
        if ratings.mirrored:
            weights = np.concatenate([weights, weights], axis=1) / 2
        return np.array([_alpha(patterns, one, domain, level) for one in weights])

    if ratings.mirrored:  # half an item is nothing that the library knows
        value = alpha(found.times[None].astype(float))[0]
    else:
        value = krippendorff.alpha(
            value_counts=counts[number][:, used], value_domain=domain, level_of_measurement=level
        )

    seen = None
    if level == "nominal" or value == 1:
        same_of, pairs_of = _equal_pairs(counts)
        given = found.times @ found.rows
        given = given + given[::-1] if ratings.mirrored else given
        chance = float(_choose_2(given).sum() / _choose_2(given.sum()[None])[0])
        seen = _Seen.of((same_of[number] / pairs_of[number]), prompts, chance)
    return _interval(float(value), n, found.draws(resamples, seed), alpha, seen)


def _alpha(patterns: Ints, times: Floats, domain: Floats, level: MeasurementLevel) -> float:
    """Alpha where each of ``patterns`` [U, K] occurs ``times`` [U], which the library cannot do."""
    share = times / (patterns.sum(axis=1) - 1)
    coincidences = (patterns * share[:, None]).T @ patterns - np.diag(share @ patterns)
    marginals = coincidences.sum(axis=0)
    if level == "nominal":
        distance = 1.0 - np.eye(len(domain))
    elif level == "interval":
        distance = (domain[:, None] - domain) ** 2
    elif level == "ratio":
        sums = domain[:, None] + domain
        distance = ((domain[:, None] - domain) / np.where(sums, sums, 1.0)) ** 2
    else:
        upto = np.cumsum(marginals) - marginals / 2  # half of a label lies below its middle
        distance = (upto[:, None] - upto) ** 2
    expected = (np.outer(marginals, marginals) * distance).sum() / (marginals.sum() - 1)
    if expected <= 0:
        return float("nan")
    return float(1 - (coincidences * distance).sum() / expected)


def _counts_of(codes: NDArray[np.integer[Any]], labels: int) -> Ints:
    """How many annotators gave each of ``labels`` labels, of rows of ``codes`` [D, R]: [D, K]."""
    every = [(codes == index).sum(axis=1) for index in range(labels)]
    found: Ints = np.stack(every, axis=1)
    return found


def _counts(ratings: Ratings) -> Ints:
    """The counts of ``ratings.alike`` [D, K]; of those with opposites all turned the same way, so
    that resamples do not depend on which is which either."""
    counts = _counts_of(ratings.alike.codes, len(ratings.labels))
    return _same_way(counts, counts[:, ::-1]) if ratings.mirrored else counts


def _same_way(rows: Ints, opposite: Ints) -> Ints:
    """Of each row and its opposite the one that is smaller where they first differ [N, K]."""
    differs = rows != opposite
    first = (np.arange(len(rows)), differs.argmax(axis=1))
    found: Ints = np.where((rows[first] > opposite[first])[:, None], opposite, rows)
    return found


def _distinct(rows: Ints) -> tuple[Ints, Ints]:
    """The different ones of ``rows`` [N, K], counts, in ascending order [U, K], and the number that
    each row has among them [N]."""
    base, size = int(rows.max(initial=0)) + 1, rows.shape[1]
    if base**size > _MOST_NUMBERS:
        distinct, number = np.unique(rows, axis=0, return_inverse=True)
        return distinct, number.reshape(-1)
    # One number stands for a row, in the order of the rows: a hundred times as fast.
    places = base ** np.arange(size)[::-1]
    there, number = renumbered(rows @ places)
    return there[:, None] // places % base, number


@dataclass(frozen=True)
class _Patterns:
    """Items that are alike, and what is drawn in a bootstrap: prompts that are alike."""

    rows: Ints
    """The U patterns [U, K]."""
    times: Ints
    """How often each occurs [U]."""
    of_prompt: Ints | None
    """The C different makings of a prompt, in items of each pattern [C, U]; null: an item each."""
    prompts: Ints
    """How often each making (each pattern, where that is null) occurs."""

    @classmethod
    def of(cls, counts: Ints, number: Ints, prompts: Ints | None) -> _Patterns:
        """Of items whose counts are those ``number`` [N] of ``counts`` [D, K]."""
        there = np.bincount(number, minlength=len(counts)) > 0
        rows, pattern = _distinct(counts[there])
        return cls.numbered(rows, pattern[(np.cumsum(there) - 1)[number]], prompts)

    @classmethod
    def numbered(cls, rows: Ints, number: Ints, prompts: Ints | None) -> _Patterns:
        """Of items whose pattern is that ``number`` [N] of ``rows``, about ``prompts`` [N]."""
        times = np.bincount(number, minlength=len(rows))
        grouping = Grouping.of(prompts, len(number))
        if grouping.alone:
            return cls(rows, times, None, times)
        groups = len(grouping.sizes)
        whole = np.bincount(grouping.group * len(rows) + number, minlength=groups * len(rows))
        makings, making = _distinct(whole.reshape(groups, len(rows)))
        return cls(rows, times, makings, np.bincount(making))

    def draws(self, resamples: int, seed: int) -> Floats:
        """How often each pattern occurs in each resample [resamples, U]; no resample where there is
        one thing to draw."""
        total = int(self.prompts.sum())
        if total < 2:
            return np.zeros((0, len(self.rows)))
        draw = np.random.default_rng(seed)
        drawn = draw.multinomial(total, self.prompts / total, size=resamples)
        return (drawn if self.of_prompt is None else drawn @ self.of_prompt).astype(float)


def _of_items(prompts: Ints | None, items: Bools) -> Ints | None:
    return None if prompts is None else prompts[items]


@dataclass(frozen=True)
class _Seen:
    """How far the value for all items may be below and above that for those that were seen, by the
    score interval of the share of equal labels, at the chance that was seen."""

    below: float
    above: float
    least: float
    """No value is lower."""

    @classmethod
    def of(cls, agreed: Floats | Bools, prompts: Ints | None, chance: float | None = None) -> _Seen:
        """Of items with these shares of equal labels [N], about ``prompts`` [N]; ``chance``: the
        share of equal labels by chance, above which agreement is told (null: above none).

        The interval is Wilson's at the effective sample size p (1 - p) / V, V being the
        cluster-robust variance of the share, with Student's t where items share prompts; where the
        shares do not vary, prompts are the observations.
        """
        from scipy.special import ndtri, stdtrit

        shares = np.asarray(agreed, np.float64)
        share, grouping = float(shares.mean()), Grouping.of(prompts, len(shares))
        variance = grouping.variance_of_mean(shares)
        effective = float(len(grouping.sizes))
        if len(grouping.sizes) > 1 and variance > 0:
            effective = max(share * (1 - share), 0.0) / variance
            if not grouping.alone:
                effective *= float(ndtri(0.975) / stdtrit(grouping.freedom, 0.975)) ** 2
        low, high = wilson(share, effective)
        above_chance = 1 - (chance or 0.0)
        # Rounded, so that the order of the items decides nothing.
        below, above = (round(end / above_chance, 12) for end in (share - low, high - share))
        return cls(below, above, 0.0 if chance is None else -1.0)


def _chance_of(table: Ints) -> float:
    """The share of equal labels by chance, of how often each met each other one [K, K]."""
    shares = table / table.sum()
    return float(shares.sum(axis=1) @ shares.sum(axis=0))


def _interval(
    value: float,
    n: int,
    draws: Floats,
    statistic: Callable[[Floats], Floats],
    seen: _Seen | None,
) -> Agreement:
    found = statistic(draws)
    defined = found[np.isfinite(found)]
    undefined = len(found) - len(defined)
    if n < 2 or not len(defined):
        return Agreement(value, n=n, undefined=undefined)
    low, high = np.percentile(defined, [2.5, 97.5])
    if seen is not None:
        low = min(low, max(value - seen.below, seen.least))
        high = max(high, min(value + seen.above, 1.0))
    return Agreement(value, float(low), float(high), n, undefined)


def _above_chance(seen: Floats, chance: Floats) -> Floats:
    return _ratio(seen - chance, 1 - chance)


def _ratio(above: Floats, below: Floats) -> Floats:
    """above / below, NaN where that is 0 / 0 up to rounding."""
    zero = np.abs(below) < 1e-12
    result: Floats = np.where(zero, np.nan, above / np.where(zero, 1.0, below))
    return result


def _choose_2(numbers: Ints) -> Floats:
    result: Floats = numbers * (numbers - 1) / 2.0
    return result
