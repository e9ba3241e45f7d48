"""Judges side by side as people read them in a terminal."""

from __future__ import annotations

from typing import Any

from rich.console import Group
from rich.table import Table
from rich.text import Text

from prefloop.labelers.statistics.estimate import Estimate
from prefloop.pipeline.judging.figures.by_group import ByGroup
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
    parts: list[Any] = [Text("\n".join(read_lines(found))), table]
    for each in found.groups:
        parts += [Text(""), Text(f"{each.judge} by {each.by}: {HOLM}"), _table_of(each)]
    return Group(*parts)


HOLM = (
    "accuracy beside that of always taking the longer answer; p that a group differs from the rest "
    "by chance, Holm's for so many groups"
)
GROUP_COLUMNS = ("group", "pairs", "accuracy", "longer is better", "difference", "p (Holm)")


def group_rows(found: ByGroup, *, brief: bool = False) -> list[list[str]]:
    """Cells of ``GROUP_COLUMNS``, and best of n where a row has lists of answers."""
    rows = []
    for one in found.groups:
        figures = one.figures
        estimates = [figures.share, figures.baseline, figures.difference, one.best_of_n]
        shown = [_brief("", each) if brief else cell("", each) for each in estimates]
        p = "–" if figures.p_holm is None else _p_value(figures.p_holm)
        rows.append([figures.group, f"{figures.share.n:,}", *shown[:3], p, shown[3]])
    lists = any(one.best_of_n for one in found.groups)
    return rows if lists else [row[:-1] for row in rows]


def group_columns(found: ByGroup) -> list[str]:
    """Names of the columns of ``group_rows``."""
    lists = any(one.best_of_n for one in found.groups)
    return [*GROUP_COLUMNS, *(["best of n"] if lists else [])]


def _p_value(p: float) -> str:
    return f"{p:.3f}" if p >= 0.0015 else f"{p:.4f}"


def _table_of(found: ByGroup) -> Table:
    table = Table(box=None, pad_edge=False)
    for at, name in enumerate(group_columns(found)):
        table.add_column(name, justify="right" if at else "left", no_wrap=at > 0, overflow="fold")
    for row in group_rows(found, brief=True):
        table.add_row(*map(Text, row))
    return table


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
