"""What a block's votes and decisions say about single candidates."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from prefloop.data.arrays import (
    Bools,
    Floats,
    Ints,
    as_arrow,
    as_numpy,
    as_text,
    as_texts,
    places_in,
)
from prefloop.labelers.decisions.reasons import NO_VALID_VOTE
from prefloop.labelers.jury.verdict_table import ROUNDING


def mean_scores(votes: pa.Table) -> dict[str, float]:
    """Mean of the absolute scores of each candidate: over votes of a labeler, then labelers."""
    of_labeler = _of_labelers(votes)
    mean = of_labeler.group_by(["candidate_id"]).aggregate([("score_mean", "mean")])
    return dict(
        zip(mean["candidate_id"].to_pylist(), mean["score_mean_mean"].to_pylist(), strict=True)
    )


def scores_by(votes: pa.Table, labelers: Sequence[str]) -> dict[str, dict[str, float]]:
    """The absolute scores of candidates by each of ``labelers``, the mean over its votes; nothing
    of candidates that it gave none."""
    found: dict[str, dict[str, float]] = {name: {} for name in labelers}
    if not found:
        return found
    own = votes.filter(pc.is_in(votes["labeler"], value_set=as_texts(labelers)))
    for row in _of_labelers(own).to_pylist():
        found[row["labeler"]][row["candidate_id"]] = row["score_mean"]
    return found


def _of_labelers(votes: pa.Table) -> pa.Table:
    sides = [
        votes.select([f"{side}_id", "labeler", f"score_{side}"]).rename_columns(
            ["candidate_id", "labeler", "score"]
        )
        for side in ("a", "b")
    ]
    both = pa.concat_tables(sides)
    both = both.filter(pc.is_valid(both["score"]))
    return both.group_by(["candidate_id", "labeler"]).aggregate([("score", "mean")])


def candidate_scores(decisions: pa.Table) -> pa.Table:
    """Columns ``candidate_id``, ``score`` (float64: mean probability, over its decided pairs, that
    the jury prefers it; a tie is 0.5) and ``pairs`` (int32: how many those are). A mean of one half
    is exactly 0.5, whatever its sum lost in rounding.

    ``decisions`` needs ``chosen_id``, ``rejected_id``, ``p_chosen`` and ``reason``. Pairs that a
    filter dropped count: it is the pair that was not wanted. Candidates come in the order of their
    ids; those in no decided pair are left out.
    """
    decided = decisions.filter(as_arrow(_are_decided(decisions)))
    chosen, rejected = decided["chosen_id"], decided["rejected_id"]
    everyone = pa.chunked_array([*chosen.chunks, *rejected.chunks], pa.string())
    ids = pc.unique(everyone).sort()
    chosen_rows, rejected_rows = places_in(pa.chunked_array([ids]), chosen, rejected)
    score, pairs = _won(chosen_rows, rejected_rows, as_numpy(decided["p_chosen"]), len(ids))
    return pa.table(
        {
            "candidate_id": ids,
            "score": as_arrow(score),
            "pairs": as_arrow(pairs),
        }
    )


def scores_of_rows(decisions: pa.Table, chosen: Ints, rejected: Ints, candidates: int) -> pa.Table:
    """The same columns ``score`` and ``pairs`` for each of so many candidates, of which ``chosen``
    and ``rejected`` are those in each decision; null for those in no decided pair."""
    rows = _are_decided(decisions)
    p_chosen = as_numpy(decisions["p_chosen"])[rows]
    score, pairs = _won(chosen[rows], rejected[rows], p_chosen, candidates)
    none = pairs == 0
    return pa.table({"score": as_arrow(score, mask=none), "pairs": as_arrow(pairs, mask=none)})


def _are_decided(decisions: pa.Table) -> Bools:
    undecided = as_numpy(pc.equal(decisions["reason"], as_text(NO_VALID_VOTE)))
    decided: Bools = undecided != 1  # where there is no reason it is NaN
    return decided


def _won(
    chosen: Ints, rejected: Ints, p_chosen: Floats, candidates: int
) -> tuple[Floats, NDArray[np.int32]]:
    """Mean win probability of each candidate, and over how many pairs [candidates]."""
    rows = np.concatenate([chosen, rejected])
    won = np.concatenate([p_chosen, 1 - p_chosen])
    pairs = np.bincount(rows, minlength=candidates)
    score: Floats = np.bincount(rows, weights=won, minlength=candidates) / np.maximum(pairs, 1)
    score[np.abs(score - 0.5) <= ROUNDING] = 0.5
    return score, pairs.astype(np.int32)
