"""What the report says under its figures."""

from __future__ import annotations

from prefloop.pipeline.report.figures import Metric, win_figures


def metric(name: str, value: float, *, round: int = 0, labeler: str | None = "jury") -> Metric:
    return Metric(round, name, value, value - 0.1, value + 0.1, 90, "start", labeler, None)


def caption_of(*gaps: float) -> str:
    rows = []
    for index, gap in enumerate(gaps):
        rows += [metric(name, 0.6, round=index)
                 for name in ("win_rate", "length_controlled_win_rate")]  # fmt: skip
        rows.append(metric("length_gap", gap, round=index))
    [figure] = win_figures(rows)
    return figure.caption


def test_an_extrapolated_win_rate_is_called_so() -> None:
    assert "extrapolation" not in caption_of(0.9, -1.0)
    said = caption_of(0.2, -2.34)
    assert "Round 1: answers are shorter by 2.3 times the spread" in said
    assert "Round 0:" not in said
