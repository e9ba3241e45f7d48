"""What the report says under its figures."""

from __future__ import annotations

from pathlib import Path

import pytest

from prefloop.pipeline.report.figures import (
    Metric,
    coverage,
    guard_captions,
    policy_figures,
    win_figures,
)
from prefloop.pipeline.run.run_dir import RunDir


def metric(name: str, value: float, *, round: int = 0, labeler: str | None = "jury") -> Metric:
    return Metric(round, name, value, value - 0.1, value + 0.1, 90, "start", labeler, None)


def caption_of(*gaps: float) -> str:
    rows = []
    for index, gap in enumerate(gaps):
        rows += [metric(name, 0.6, round=index)
                 for name in ("win_rate", "length_controlled_win_rate")]  # fmt: skip
        rows.append(metric("length_gap", gap, round=index))
    [figure] = win_figures(rows, 0.95)
    return figure.caption


def test_an_extrapolated_win_rate_is_called_so() -> None:
    assert "extrapolation" not in caption_of(0.9, -1.0)
    said = caption_of(0.2, -2.34)
    assert "Round 1: answers are shorter by 2.3 times the spread" in said
    assert "Round 0:" not in said


@pytest.mark.parametrize(
    ("train", "stops"),
    [
        ("{beta: 0.1}", "20"),
        ("{beta: 0.5}", "100"),
        ("{beta: 0.1, guards: {max_margin: 5}}", "5"),
        ("{beta: 0.1, guards: {max_margin: 30}}", "20"),
        ("{beta: 0.1, guards: {max_margin: 30, max_margin_nats: null}}", "30"),
        ("{beta: 0.1, guards: {max_margin_nats: null}}", None),
        # Its guards look at log-probabilities, and not at what is drawn.
        ("{beta: 2.0, loss: simpo}", None),
        ("{beta: 0.1, loss: [sigmoid, sft]}", "20"),
    ],
)
def test_the_margins_caption_says_where_its_guard_stops(
    train: str, stops: str | None, tmp_path: Path
) -> None:
    run = RunDir(tmp_path)
    run.config.write_text(f"train: {train}\n")
    caption = guard_captions(run).get("rewards/margins")
    assert caption is None if stops is None else caption.endswith(f"and stops at {stops}.")


def test_intervals_are_called_by_the_coverage_they_have(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    assert coverage(run) == 0.95
    run.config.write_text("evaluate: {confidence: 0.8}\n")
    [figure] = win_figures([metric("win_rate", 0.6)], coverage(run))
    assert "bars are 80 % intervals" in figure.caption


def test_a_kl_is_no_whole_number_in_the_table_beside_its_plot() -> None:
    rows = [metric("win_rate", 0.6, round=index) for index in range(2)]
    rows += [metric("kl", kl, round=at, labeler=None) for at, kl in enumerate((-0.061, 2.34))]
    [frontier] = [one for one in policy_figures(rows, {}) if one.title.endswith("by KL")]
    assert [row[0] for row in frontier.rows] == ["-0.061", "2.34"]
