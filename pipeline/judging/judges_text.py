"""Judges side by side as people read them in a terminal."""

from __future__ import annotations

from typing import Any

from rich.console import Group
from rich.table import Table
from rich.text import Text

from prefloop.labelers.statistics.estimate import Estimate
from prefloop.pipeline.judging.gold_eval import JudgeEval
from prefloop.pipeline.judging.judge_figures import GAP_NAMES, side_by_side
from prefloop.pipeline.report.formats import figure, percent

_COUNTS = {"pairs with a verdict", "invalid votes", "tie votes", "tokens per 1,000 pairs",
           "rows left out of it"}  # fmt: skip


def render_judges(found: JudgeEval) -> Group:
    """For the terminal."""
    table = Table(box=None, pad_edge=False)
    table.add_column("shares in %, with 95 % interval", no_wrap=True)
    for one in found.figures:
        table.add_column(Text(one.judge, overflow="fold"), justify="right")
    for name, values in side_by_side(found.figures):
        table.add_row(name, *(Text(_brief(name, value)) for value in values))
    for at, name in enumerate(GAP_NAMES):
        cells = [_brief("accuracy", one.by_gap[at]) for one in found.figures]
        table.add_row(f"accuracy, better is {name}", *map(Text, cells))
    return Group(Text("\n".join(read_lines(found))), table)


def _brief(name: str, value: Any) -> str:
    if isinstance(value, Estimate):
        share, low, high = (100 * one for one in (value.value, value.low, value.high))
        return f"{share:.1f} [{low:.0f}, {high:.0f}]"
    return cell(name, value)


def read_lines(found: JudgeEval) -> list[str]:
    """What was compared, and what could not be read."""
    lines = [f"{found.source}: {found.pairs:,} pairs with gold labels"]
    if found.refused:
        reasons = ", ".join(f"{reason}: {count:,}" for reason, count in found.refused.items())
        lines += [f"rows without such a pair: {reasons}", *(f"  {one}" for one in found.examples)]
    for path, refused in found.verdicts_refused.items():
        reasons = ", ".join(f"{reason}: {count:,}" for reason, count in refused.items())
        lines.append(f"{path}: rows left out: {reasons}")
    ties = found.figures[0].gold_ties if found.figures else 0
    if ties:
        lines.append(f"gold ties, which only kappa counts: {ties:,}")
    return lines


def cell(name: str, value: Any) -> str:
    """A figure with its interval, as people read it."""
    if value is None:
        return "–"
    if isinstance(value, Estimate):
        return f"{percent(value.value)} [{percent(value.low)}, {percent(value.high)}]"
    if name in _COUNTS:
        return f"{value:,.0f}"
    return figure(value)
