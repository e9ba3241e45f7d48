"""Which pairs people should see next.

Every strategy draws with known probabilities and leaves no pair without a chance, so that what
people say about the drawn pairs estimates the whole dataset without bias (weights 1 / probability;
``prefloop.labelers.statistics.dataset_accuracy``).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import ArrayLike, NDArray

from prefloop.data.arrays import Floats

Strategy = Literal["uncertain", "disagreement", "random", "mixed"]
STRATEGIES: tuple[Strategy, ...] = ("uncertain", "disagreement", "random", "mixed")

_UNIFORM_SHARE = {"uncertain": 0.1, "disagreement": 0.1, "random": 1.0, "mixed": 0.5}
"""Share of the draw in which every pair has the same chance."""


@dataclass(frozen=True)
class ReviewDraw:
    """The drawn pairs, the most uncertain first."""

    index: NDArray[np.int64]
    """Places of the drawn pairs [n]."""
    inclusion: Floats
    """Probability with which each was drawn [n]."""


def draw(
    pair_ids: Sequence[str] | pa.ChunkedArray,
    p_chosen: ArrayLike,
    agreement: ArrayLike,
    n: int,
    strategy: Strategy,
    *,
    seed: int,
) -> ReviewDraw:
    """Draw ``n`` of N pairs (all of them where there are no more), by seed.

    ``p_chosen`` and ``agreement`` [N] are the jury's probability of its decision and the share of
    labelers that share it. ``random`` gives each pair the same chance. ``uncertain`` goes by the
    standard deviation sqrt(p (1 - p)) of the decision, which makes an estimate of the dataset's
    accuracy from the drawn pairs as exact as n labels allow (Zrnic and Candes 2024, Active
    Statistical Inference, arXiv 2403.03208, section 3), with a tenth of equal chances mixed in;
    ``disagreement`` by the share of labelers that disagree; ``mixed`` by both, with half of equal
    chances. The order of the rows decides nothing.

    Raises ``ValueError`` for ``n`` less than 1 or arrays that do not fit together.
    """
    size = len(pair_ids)
    if not isinstance(pair_ids, pa.ChunkedArray):
        pair_ids = pa.chunked_array([pa.array(pair_ids, pa.string())])
    if n < 1 or np.shape(p_chosen) != (size,):
        raise ValueError(f"cannot draw {n} of {size} pairs with {np.shape(p_chosen)}")
    score = _score(p_chosen, agreement, strategy)
    inclusion = chances(p_chosen, agreement, n, strategy)
    chosen = np.arange(size) if n >= size else _systematic(pair_ids, inclusion, seed)
    inclusion = inclusion[chosen]
    names = pair_ids.take(pa.array(chosen)).to_pylist()
    first = np.lexsort((np.asarray(names), -score[chosen]))
    return ReviewDraw(chosen[first], inclusion[first])


def chances(p_chosen: ArrayLike, agreement: ArrayLike, n: int, strategy: Strategy) -> Floats:
    """The probability of each of the N pairs to be among the ``n`` that ``draw`` draws [N]."""
    score = _score(p_chosen, agreement, strategy)
    size = len(score)
    if n >= size:
        return np.ones(size)
    share = _UNIFORM_SHARE[strategy]
    found: Floats = share * n / size + (1 - share) * _proportional(score, n)
    return found


def _score(p_chosen: ArrayLike, agreement: ArrayLike, strategy: Strategy) -> Floats:
    p, agreed = np.asarray(p_chosen, np.float64), np.asarray(agreement, np.float64)
    if p.ndim != 1 or p.shape != agreed.shape:
        raise ValueError(f"{p.shape} probabilities and {agreed.shape} agreements: one each")
    uncertain, disagreed = np.sqrt(p * (1 - p)), 1 - agreed
    return {
        "uncertain": uncertain,
        "disagreement": disagreed,
        "random": np.ones(len(p)),
        "mixed": _as_share(uncertain) + _as_share(disagreed),
    }[strategy]


def _as_share(score: Floats) -> Floats:
    total = float(score.sum())
    return score / total if total > 0 else np.full(len(score), 1 / len(score))


def _proportional(score: Floats, n: int) -> Floats:
    """Probabilities proportional to ``score`` that add up to ``n``, none above 1."""
    found = np.zeros(len(score))
    free = np.ones(len(score), np.bool_)
    while True:
        left = n - (~free).sum()
        if left <= 0:
            return found
        total = float(score[free].sum())
        # Nothing to go by is left: equal chances for the rest.
        wanted = left * (score / total if total > 0 else np.full(len(score), 1 / free.sum()))
        over = free & (wanted >= 1)
        if not over.any():
            found[free] = wanted[free]
            return found
        found[over] = 1.0
        free &= ~over


def _systematic(pair_ids: pa.ChunkedArray, inclusion: Floats, seed: int) -> NDArray[np.int64]:
    """Places drawn with exactly these probabilities, as many as they add up to."""
    generator = np.random.default_rng(seed)
    by_name = pc.sort_indices(pair_ids).to_numpy().astype(np.int64)
    order = by_name[generator.permutation(len(by_name))]
    ends = np.cumsum(inclusion[order])
    ends = ends * round(float(ends[-1])) / ends[-1]  # a sum of floats is a whole number again
    picks = np.arange(round(float(ends[-1]))) + generator.random()
    found: NDArray[np.int64] = np.sort(order[np.searchsorted(ends, picks)])
    return found
