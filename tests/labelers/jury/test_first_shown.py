"""The share of votes for the answer shown first: a pair's two votes belong together."""

from __future__ import annotations

import numpy as np
import pytest

from prefloop.labelers.jury.first_shown import first_shown_share
from prefloop.labelers.jury.verdict_table import PositionBias
from prefloop.labelers.statistics.estimate import wilson


def bias_of(first: np.ndarray, shown: np.ndarray) -> PositionBias:
    return PositionBias(
        shown=int(shown.sum()), first=int(first.sum()), prompts=len(shown),
        shown_squares=int((shown**2).sum()), first_squares=int((first**2).sum()),
        products=int((first * shown).sum()),
    )  # fmt: skip


def test_one_order_is_wilsons() -> None:
    found = first_shown_share(bias_of(np.array([1] * 30 + [0] * 10), np.ones(40, int)))
    assert found is not None
    assert (found.low, found.high) == pytest.approx(wilson(0.75, 40))
    assert first_shown_share(PositionBias()) is None


@pytest.mark.parametrize("always", [0, 2])
def test_a_judge_that_looks_at_the_place_only_counts_once_a_pair(always: int) -> None:
    found = first_shown_share(bias_of(np.full(50, always), np.full(50, 2)))
    assert found is not None
    assert (found.low, found.high) == pytest.approx(wilson(always / 2, 50))


def test_votes_that_all_cancel_leave_a_narrow_interval_with_width() -> None:
    found = first_shown_share(bias_of(np.ones(100, int), np.full(100, 2)))
    assert found is not None
    assert 0.4 < found.low < 0.5 < found.high < 0.6
    low, high = wilson(0.5, 200)
    assert found.high - found.low < 0.5 * (high - low)


@pytest.mark.parametrize(
    ("pairs", "chances"),
    [
        (60, (0.05, 0.9, 0.05)), (200, (0.02, 0.9, 0.08)), (200, (0.25, 0.5, 0.25)),
        (100, (0.1, 0.3, 0.6)), (400, (0.0, 0.99, 0.01)), (40, (0.02, 0.97, 0.01)),
    ],
)  # fmt: skip
def test_coverage(pairs: int, chances: tuple[float, float, float]) -> None:
    """``chances`` of a pair whose votes prefer the first shown never, once and twice."""
    truth = chances[1] / 2 + chances[2]
    draw = np.random.default_rng(0)
    inside = []
    for _ in range(600):
        found = first_shown_share(bias_of(draw.choice(3, pairs, p=chances), np.full(pairs, 2)))
        assert found is not None
        inside.append(found.low <= truth <= found.high)
    assert np.mean(inside) > 0.925


def test_pairs_of_one_prompt_are_one_observation() -> None:
    """Ten pairs of each of 40 prompts, all for the first shown or all for the second."""
    found = first_shown_share(bias_of(np.array([20] * 30 + [0] * 10), np.full(40, 20)))
    assert found is not None
    low, high = wilson(0.75, 40)
    assert found.high - found.low == pytest.approx(high - low, rel=0.05)
