"""What the decisions say about single candidates, next to sums of fractions."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from prefloop.labelers.decisions.candidate_scores import candidate_scores

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
