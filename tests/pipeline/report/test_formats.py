"""Numbers as people read them, at the edges of their units."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from prefloop.pipeline.policies.comparison_text import interval
from prefloop.pipeline.report.formats import duration, figure, money, percent, short_count, size


@pytest.mark.parametrize(
    ("form", "value", "text"),
    [
        (percent, 0.6321, "63.2 %"),
        (percent, 0.005, "0.5 %"),
        (percent, 0.9998, "99.98 %"),
        (percent, 0.99996, "99.996 %"),
        (percent, 0.0004, "0.04 %"),
        (percent, 3e-8, "< 0.0001 %"),
        (percent, 1 - 3e-8, "> 99.9999 %"),
        (percent, 0.0, "0.0 %"),
        (percent, 1.0, "100.0 %"),
        (percent, sum([0.1] * 10), "100.0 %"),
        (figure, 999.4, "999"),
        (figure, 999.7, "1,000"),
        (figure, -999.7, "-1,000"),
        (figure, 1e9, "1,000,000,000"),
        (short_count, 9_999, "9,999"),
        (short_count, 999_949, "999.9 k"),
        (short_count, 999_999, "1.0 M"),
        (short_count, 999_960_000, "1.0 G"),
        (short_count, 1e9, "1.0 G"),
        (short_count, 1e16, "10,000.0 T"),
        (duration, 9.97, "10 s"),
        (duration, 59.7, "1 min 00 s"),
        (duration, 3725, "1 h 02 min"),
        (money, 0.0, "0"),
        (money, 0.00004, "0.000040"),
        (money, 0.0123, "0.0123"),
        (money, 0.999999, "1.00"),
        (size, 1_500_000, "1.5 MB"),
        (size, 999_960, "1.0 MB"),
        (size, 999, "999 B"),
    ],
)
def test_a_number_keeps_its_meaning(form: Callable[[float], str], value: float, text: str) -> None:
    assert form(value).replace("\u00a0", " ") == text


def test_a_figure_of_nothing_has_no_sign() -> None:
    row = {"value": -0.0002, "low": -0.0541, "high": 0.0004}
    assert interval(row) == "0.000 [-0.054, 0.000]"
    assert interval({**row, "low": None}) == "0.000"
