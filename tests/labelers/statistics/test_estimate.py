"""Wilson's interval, the one that every share in the project has."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from statsmodels.stats.proportion import proportion_confint

from prefloop.labelers.statistics.estimate import Estimate, proportion_estimate, wilson


def test_wilson() -> None:
    assert wilson(0, 0) == (0.0, 1.0)
    assert wilson(8 / 10, 10) == pytest.approx((0.4901625, 0.9433178), abs=1e-6)
    assert wilson(1, 10)[1] == 1.0
    assert wilson(0, 10)[0] == 0.0


@given(st.integers(1, 10**6), st.floats(0, 1), st.sampled_from([0.5, 0.9, 0.95, 0.99]))
def test_wilson_is_that_of_statsmodels(n: int, share: float, confidence: float) -> None:
    low, high = wilson(share, n, confidence)
    expected = proportion_confint(share * n, n, alpha=1 - confidence, method="wilson")
    assert (low, high) == pytest.approx(expected, abs=1e-12)
    assert 0 <= low <= share <= high <= 1


def test_a_tie_is_half_a_success() -> None:
    assert proportion_estimate(7.5, 10) == Estimate(0.75, *wilson(0.75, 10), 10)
