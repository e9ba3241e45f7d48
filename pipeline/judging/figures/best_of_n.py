"""Best of n: does a judge find the good answers among several, row by row, as in RewardBench 2?

A row of RewardBench 2 has good answers and bad ones (one and three, except in its subset Ties). The
official score of a row with one good answer is 1 where that has the highest score of all, 1/k where
k answers share the highest, and else 0. That of the subset Ties is made of more than one number, of
which the accuracy is 1 where every good answer scores higher than every bad one, and else 0.

Here a row is read from a judge's verdicts on its pairs, of every good answer with every bad one:

* one good answer: 0 where it lost to one, else 1/(1 + t), t being the bad answers it tied with. For
  a judge whose verdicts are differences of scores, that is the official score. Another may have its
  ties in circles, which nothing official is said about;
* several good answers, or a row of a ``subset`` named Ties: 1 where every good answer beat every
  bad one, and else 0: the official accuracy. The rest of the official score of Ties, which compares
  distances between scores, is not in verdicts, and is not part of this.

A row with a pair that has no verdict, or that is no pair here (two equal answers, or a pair that
stands in an earlier row), is left out and counted; officially an answer that cannot be read counts
as a tie of all. The official total is the mean of the subsets' means; this is the mean of rows.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from prefloop.data.arrays import Bools, Ints
from prefloop.data.preferences.gold import GoldPair
from prefloop.labelers.statistics.estimate import Estimate
from prefloop.labelers.statistics.winrate import win_rate
from prefloop.pipeline.judging.figures.judged import Judged

_STRICT_SUBSET = "ties"


@dataclass(frozen=True)
class BestOfN:
    """Rows of several pairs; ``share`` is null where none of them is whole."""

    share: Estimate | None
    """Mean of the rows' scores, the prompt being what repeats."""
    left_out: int
    """Rows with a pair that has no verdict, or that is no pair."""


def best_of_n(
    judged: Judged, gold: Sequence[GoldPair], counting: Bools | None = None
) -> BestOfN | None:
    """The rows of ``gold`` that have several pairs; null where there are none.

    ``counting`` [P]: which pairs are looked at; null: all.
    """
    rows: dict[tuple[str, int], list[int]] = defaultdict(list)
    for at, pair in enumerate(gold):
        if pair.of_row > 1 and (counting is None or counting[at]):
            rows[pair.source, pair.row].append(at)
    if not rows:
        return None
    whole = [
        places
        for places in map(np.array, rows.values())
        if len(places) == gold[places[0]].of_row and judged.valid[places].all()
    ]
    left_out = len(rows) - len(whole)
    if not whole:
        return BestOfN(None, left_out)
    scores = [_score(judged, places, gold[places[0]]) for places in whole]
    prompts = judged.prompts[[places[0] for places in whole]]
    return BestOfN(win_rate(scores, prompts), left_out)


def _score(judged: Judged, places: Ints, pair: GoldPair) -> float:
    right = judged.right[places]
    if pair.several_good or str(pair.metadata.get("subset")).strip().lower() == _STRICT_SUBSET:
        return float((right == 1).all())
    return 0.0 if (right == 0).any() else 1 / (1 + int((right == 0.5).sum()))
