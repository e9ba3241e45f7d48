"""What the decisions say about single candidates, next to sums of fractions."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from prefloop.labelers.decisions.candidate_scores import candidate_scores, scores_of_rows
from prefloop.labelers.decisions.decide import NO_VALID_VOTE

TENTHS = st.lists(st.integers(0, 30), min_size=1, max_size=12)


def _scores(shares: list[float]) -> dict[str, float]:
    """The score of candidate x, which meets another one in each pair and wins it so often."""
    rows = [
        ("x", f"y{at}", p) if p >= 0.5 else (f"y{at}", "x", 1 - p) for at, p in enumerate(shares)
    ]
    chosen, rejected, p_chosen = zip(*rows, strict=True)
    decisions = pa.table(
        {
            "chosen_id": pa.array(chosen, pa.string()),
            "rejected_id": pa.array(rejected, pa.string()),
            "p_chosen": np.round(p_chosen, 12),
            "reason": pa.array([None] * len(rows), pa.string()),
        }
    )
    found = candidate_scores(decisions)
    return dict(zip(found["candidate_id"].to_pylist(), found["score"].to_pylist(), strict=True))


@settings(max_examples=60, deadline=None)
@given(TENTHS)
@example([3, 21, 21])
@example([20, 20, 5])
@example([9, 27, 9])
def test_one_half_is_exact_and_nothing_else_is(shares: list[int]) -> None:
    of = [Fraction(share, 30) for share in shares]
    mean = sum(of) / len(of)
    score = _scores([float(one) for one in of])["x"]
    assert (score == 0.5) == (mean == Fraction(1, 2))
    assert score == pytest.approx(float(mean), abs=1e-9)


def test_scores_of_rows_are_those_by_id() -> None:
    ids = ["b", "a", "c", "nobody"]
    decisions = pa.table(
        {
            "chosen_id": pa.array(["a", "b", "c"]),
            "rejected_id": pa.array(["b", "c", "a"]),
            "p_chosen": np.array([0.9, 0.7, 0.5]),
            "reason": pa.array([None, "margin", NO_VALID_VOTE], pa.string()),
        }
    )
    chosen, rejected = (
        np.array([ids.index(one) for one in decisions[name].to_pylist()])
        for name in ("chosen_id", "rejected_id")
    )
    by_id = {row.pop("candidate_id"): row for row in candidate_scores(decisions).to_pylist()}
    found = scores_of_rows(decisions, chosen, rejected, len(ids)).to_pylist()
    assert found == [by_id.get(one, {"score": None, "pairs": None}) for one in ids]
    assert found[0] == {"score": pytest.approx(0.4), "pairs": 2}
