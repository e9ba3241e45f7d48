"""Judges side by side as one HTML page with pictures."""

from __future__ import annotations

from prefloop.labelers.statistics.estimate import Estimate
from prefloop.pipeline.judging.gold_eval import JudgeEval
from prefloop.pipeline.judging.judge_figures import GAP_NAMES, side_by_side
from prefloop.pipeline.judging.judges_text import (
    HOLM,
    cell,
    group_columns,
    group_rows,
    read_lines,
)
from prefloop.pipeline.report.pages import render_page
from prefloop.pipeline.report.plots import Figure, Series, Words, lines

_SUBSETS = (
    ("all", "accuracy"),
    ("both", "both_right"),
    ("longer", "accuracy_longer"),
    ("shorter", "accuracy_shorter"),
    ("equal", "length_controlled_accuracy"),
)


def judge_page(found: JudgeEval) -> str:
    """One self-contained HTML page; everything out of a file is escaped."""
    table = [
        (name, [cell(name, value) for value in values])
        for name, values in side_by_side(found.figures)
    ]
    return render_page(
        "judge_eval.html.jinja",
        source=found.source,
        lines=read_lines(found)[1:],
        pairs=found.pairs,
        judges=[one.judge for one in found.figures],
        table=table,
        figures=_figures(found),
        holm=HOLM,
        groups=[
            {"judge": one.judge, "by": one.by, "columns": group_columns(one),
             "rows": group_rows(one)}
            for one in found.groups
        ],
    )  # fmt: skip


def _figures(found: JudgeEval) -> list[Figure]:
    subsets = [
        _series(one.judge, [getattr(one, attribute) for _, attribute in _SUBSETS])
        for one in found.figures
    ]
    gaps = [_series(one.judge, list(one.by_gap)) for one in found.figures]
    drawn = [
        lines(
            Words(
                "accuracy",
                "Accuracy",
                "Share of right verdicts, a tie counting half, of all pairs; both: right in both "
                "orders; longer and shorter: where the better answer is; equal: had both been "
                "equally long, by the length-controlled model. Lines are 95 % intervals.",
            ),
            subsets,
            x_names=[name for name, _ in _SUBSETS],
            reference=0.5,
            as_percent=True,
        ),
        lines(
            Words(
                "gaps",
                "Accuracy by length of the better answer",
                "The better answer's length compared with the other's. A judge that just likes "
                "longer answers rises from left to right.",
            ),
            gaps,
            x_names=GAP_NAMES,
            reference=0.5,
            as_percent=True,
        ),
    ]
    soft = [
        Series(
            one.judge,
            [each.confidence for each in one.calibration.bins],
            [each.accuracy.value for each in one.calibration.bins],
            [each.accuracy.low for each in one.calibration.bins],
            [each.accuracy.high for each in one.calibration.bins],
        )
        for one in found.figures
        if one.calibration
    ]
    if soft:
        ideal = Series("as sure as right", [0.5, 1.0], [0.5, 1.0])
        words = Words(
            "reliability",
            "Reliability",
            "Accuracy of verdicts by the probability that the judge gave them, in bins of equal "
            "mass. Below the straight line it is too sure of itself.",
            x="probability of its verdict",
        )
        drawn.append(lines(words, [*soft, ideal], as_percent=True))
    return drawn


def _series(name: str, estimates: list[Estimate | None]) -> Series:
    known = [(place, one) for place, one in enumerate(estimates) if one]
    return Series(
        name,
        [place for place, _ in known],
        [one.value for _, one in known],
        [one.low for _, one in known],
        [one.high for _, one in known],
    )
