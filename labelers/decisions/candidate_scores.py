"""What a block's votes and decisions say about single candidates."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

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
    own = votes.filter(pc.is_in(votes["labeler"], value_set=pa.array(labelers, pa.string())))
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
    undecided = pc.fill_null(pc.equal(decisions["reason"], NO_VALID_VOTE), fill_value=False)
    decided = decisions.filter(pc.invert(undecided))
    chosen, rejected = decided["chosen_id"], decided["rejected_id"]
    everyone = pa.chunked_array([*chosen.chunks, *rejected.chunks], pa.string())
    ids = pc.unique(everyone).sort()
    place = pc.index_in(everyone, value_set=ids).to_numpy()
    p = decided["p_chosen"].to_numpy()
    won = np.concatenate([p, 1 - p])
    pairs = np.bincount(place, minlength=len(ids))
    total = np.bincount(place, weights=won, minlength=len(ids))
    score = total / np.maximum(pairs, 1)
    score[np.abs(score - 0.5) <= ROUNDING] = 0.5
    return pa.table(
        {
            "candidate_id": ids,
            "score": score,
            "pairs": pairs.astype(np.int32),
        }
    )
