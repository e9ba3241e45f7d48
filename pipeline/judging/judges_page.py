"""Judges side by side: in the terminal and as one HTML page with a picture."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from prefloop.labelers.statistics.estimate import Estimate
from prefloop.pipeline.judging.gold_eval import JudgeEval
from prefloop.pipeline.judging.judge_figures import GAP_NAMES, side_by_side
from prefloop.pipeline.report.formats import figure, percent
from prefloop.pipeline.report.pages import render_page
from prefloop.pipeline.report.plots import Figure, Series, lines

if TYPE_CHECKING:
    from rich.console import Group

_COUNTS = {"pairs with a verdict", "invalid votes", "tie votes", "tokens per 1,000 pairs"}
_SUBSETS = (
    ("all", "accuracy"),
    ("both", "both_right"),
    ("longer", "accuracy_longer"),
    ("shorter", "accuracy_shorter"),
    ("equal", "length_controlled_accuracy"),
)


def render_judges(found: JudgeEval) -> Group:
    """For the terminal."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False)
    table.add_column("shares in %, with 95 % interval", no_wrap=True)
    for one in found.figures:
        table.add_column(Text(one.judge, overflow="fold"), justify="right")
    for name, values in side_by_side(found.figures):
        table.add_row(name, *(Text(_brief(name, value)) for value in values))
    for at, name in enumerate(GAP_NAMES):
        cells = [_brief("accuracy", one.by_gap[at]) for one in found.figures]
        table.add_row(f"accuracy, better is {name}", *map(Text, cells))
    return Group(Text("\n".join(summary(found))), table)


def _brief(name: str, value: Any) -> str:
    if isinstance(value, Estimate):
        share, low, high = (100 * one for one in (value.value, value.low, value.high))
        return f"{share:.1f} [{low:.0f}, {high:.0f}]"
    return cell(name, value)


def summary(found: JudgeEval) -> list[str]:
    """What was compared, and what could not be read."""
    lines_ = [f"{found.source}: {found.pairs:,} pairs with gold labels"]
    if found.refused:
        reasons = ", ".join(f"{reason}: {count:,}" for reason, count in found.refused.items())
        lines_ += [f"rows without such a pair: {reasons}", *(f"  {one}" for one in found.examples)]
    for path, refused in found.verdicts_refused.items():
        reasons = ", ".join(f"{reason}: {count:,}" for reason, count in refused.items())
        lines_.append(f"{path}: rows left out: {reasons}")
    ties = found.figures[0].gold_ties if found.figures else 0
    if ties:
        lines_.append(f"gold ties, which only kappa counts: {ties:,}")
    return lines_


def cell(name: str, value: Any) -> str:
    """A figure with its interval, as people read it."""
    if value is None:
        return "–"
    if isinstance(value, Estimate):
        return f"{percent(value.value)} [{percent(value.low)}, {percent(value.high)}]"
    if name in _COUNTS:
        return f"{value:,.0f}"
    return figure(value)


def judge_page(found: JudgeEval) -> str:
    """One self-contained HTML page; everything out of a file is escaped."""
    table = [
        (name, [cell(name, value) for value in values])
        for name, values in side_by_side(found.figures)
    ]
    return render_page(
        "judge_eval.html.jinja",
        source=found.source,
        lines=summary(found)[1:],
        pairs=found.pairs,
        judges=[one.judge for one in found.figures],
        table=table,
        figures=_figures(found),
    )


def _figures(found: JudgeEval) -> list[Figure]:
    subsets = [
        _series(one.judge, [getattr(one, attribute) for _, attribute in _SUBSETS])
        for one in found.figures
    ]
    gaps = [_series(one.judge, list(one.by_gap)) for one in found.figures]
    drawn = [
        lines(
            "accuracy", "Accuracy", subsets, x_names=[name for name, _ in _SUBSETS],
            reference=0.5, as_percent=True,
            caption="Share of right verdicts, a tie counting half, of all pairs; both: right in "
            "both orders; longer and shorter: where the better answer is; equal: had both been "
            "equally long, by the length-controlled model. Lines are 95 % intervals.",
        ),
        lines(
            "gaps", "Accuracy by length of the better answer", gaps, x_names=GAP_NAMES,
            reference=0.5, as_percent=True,
            caption="The better answer's length compared with the other's. A judge that just likes "
            "longer answers rises from left to right.",
        ),
    ]  # fmt: skip
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
        drawn.append(
            lines(
                "reliability", "Reliability", [*soft, ideal], x_label="probability of its verdict",
                as_percent=True,
                caption="Accuracy of verdicts by the probability that the judge gave them, in bins "
                "of equal mass. Below the straight line it is too sure of itself.",
            )
        )  # fmt: skip
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
