"""A comparison of policies, for the terminal; the page has the same tables."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from rich.console import Group
from rich.table import Table
from rich.text import Text

from prefloop.pipeline.policies.comparison import Evaluation
from prefloop.pipeline.report.formats import figure
from prefloop.pipeline.run.run_dir import JURY

_FIGURES = {
    "mean_chars": "characters an answer",
    "mean_tokens": "tokens an answer",
    "mean_reasoning_tokens": "tokens a thought",
    "truncated_share": "truncated",
    "repetitive_share": "repetitive",
    "distinct_2": "distinct pairs of words",
    "self_bleu": "self-BLEU",
}
_RATES = ("win_rate", "length_controlled_win_rate")


@dataclass(frozen=True)
class Cells:
    """A table in words."""

    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def win_rate_cells(found: Evaluation) -> Cells:
    """A row for each match and labeler, the jury's first."""
    by_match: dict[tuple[str, str], dict[tuple[str, str], dict[str, Any]]] = {}
    for row in found.figures:
        if row["name"] in _RATES:
            of_match = by_match.setdefault((row["policy"], row["against"]), {})
            of_match[row["labeler"], row["name"]] = row
    rows: list[tuple[str, ...]] = []
    for (policy, against), rates in by_match.items():
        names = list(dict.fromkeys(labeler for labeler, _ in rates))
        for name in sorted(names, key=lambda one: (one != JURY, one)):
            cells = [_rate(rates.get((name, rate))) for rate in _RATES]
            n = f"{rates[name, _RATES[0]]['n']:,}"
            rows.append((policy, against, name, *cells, n))
    return Cells(
        ("policy", "against", "by", "win rate", "length-controlled", "prompts x samples"),
        tuple(rows),
    )


def policy_cells(found: Evaluation) -> Cells:
    """A row for each policy: rewards, KL to the first, and what its answers are like."""
    of = {
        (row["policy"], row["name"], row["labeler"]): row
        for row in found.figures
        if row["name"] not in _RATES
    }
    labelers = list(dict.fromkeys(one for _, name, one in of if name == "mean_score"))
    shown = [name for name in _FIGURES if any(key[1] == name for key in of)]
    has_kl = any(name == "kl" for _, name, _ in of)
    columns = ["policy", *(f"mean score by {one}" for one in labelers)]
    columns += [f"KL to {found.against}"] * has_kl + [_FIGURES[name] for name in shown]
    rows = []
    for policy in found.policies:
        cells = [interval(of.get((policy, "mean_score", one))) for one in labelers]
        cells += [interval(of.get((policy, "kl", None)))] * has_kl
        known = [of.get((policy, name, None)) for name in shown]
        cells += [figure(row["value"]) if row else "–" for row in known]
        rows.append((policy, *cells))
    return Cells(tuple(columns), tuple(rows))


def render_evaluation(found: Evaluation) -> Group:
    """For the terminal."""
    rates = win_rate_cells(found)
    if len(found.policies) == 2:
        head = f"{found.policy} against {found.against}"
        rates = Cells(rates.columns[2:], tuple(row[2:] for row in rates.rows))
    else:
        head = f"{len(found.policies)} policies, on the same prompts"
    figures = policy_cells(found)
    # A policy a column: there are more figures than policies.
    turned = Cells(
        ("", *(row[0] for row in figures.rows)),
        tuple(
            (name, *(row[at] for row in figures.rows))
            for at, name in enumerate(figures.columns)
            if at
        ),
    )
    ends = [
        *found.notes,
        f"side by side: {found.page}",
        f"prompt by prompt: {found.sheet}",
        f"every answer: {found.table}",
        f"answers and votes: {found.folder}",
    ]
    words = 1 if len(found.policies) == 2 else 3
    return Group(Text(head), _table(rates, words), _table(turned, 1), Text("\n".join(ends)))


def interval(row: dict[str, Any] | None) -> str:
    """A figure with its interval."""
    if row is None:
        return "–"
    if row["low"] is None:
        return f"{row['value']:z.3f}"
    return f"{row['value']:z.3f} [{row['low']:z.3f}, {row['high']:z.3f}]"


def _rate(row: dict[str, Any] | None) -> str:
    """A win rate; marked where it is not a half, all comparisons together."""
    text = interval(row)
    if row is None or row.get("low_all") is None:
        return text
    low, high = row["low_all"], row["high_all"]
    is_one_of_several = (low, high) != (row["low"], row["high"])
    return f"{text} *" if is_one_of_several and not low <= 0.5 <= high else text


def _table(cells: Cells, words: int) -> Table:
    """``cells``, of which the first ``words`` columns are words."""
    table = Table(box=None, pad_edge=False)
    for at, name in enumerate(cells.columns):
        table.add_column(Text(name), justify="left" if at < words else "right", overflow="fold")
    for row in cells.rows:
        table.add_row(*map(Text, row))
    return table
