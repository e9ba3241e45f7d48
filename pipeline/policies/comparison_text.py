"""A comparison of two policies, for the terminal."""

from __future__ import annotations

from typing import Any

from rich.console import Group
from rich.table import Table
from rich.text import Text

from prefloop.labelers.statistics.winrate import LENGTH_GAP, extrapolates
from prefloop.pipeline.policies.compare import AGAINST, Evaluation
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
_SHOWN = ("win_rate", "length_controlled_win_rate")


def render_evaluation(found: Evaluation) -> Group:
    """For the terminal."""
    table = Table(box=None, pad_edge=False)
    for name in ("by", "win rate", "length-controlled", "prompts x samples"):
        table.add_column(name, justify="left" if name == "by" else "right")
    rates = {(row["labeler"], row["name"]): row for row in found.rows if row["name"] in _SHOWN}
    names = list(dict.fromkeys(labeler for labeler, _ in rates))
    for name in sorted(names, key=lambda one: (one != JURY, one)):
        cells = [_interval(rates.get((name, figure))) for figure in _SHOWN]
        table.add_row(Text(name), *cells, f"{rates[name, _SHOWN[0]]['n']:,}")
    figures = {(row["name"], row["against"]): row for row in found.rows}
    lines = [f"{found.policy} against {found.against}"]
    for name, words in _FIGURES.items():
        new, other = figures.get((name, None)), figures.get((name, AGAINST))
        if new and other:
            lines.append(f"{words}: {new['value']:.3g} and {other['value']:.3g}")
    gap = figures.get((LENGTH_GAP, AGAINST))
    if gap and (remark := extrapolates(gap["value"])):
        lines.append(remark)
    divergence = figures.get(("kl", AGAINST))
    if divergence:
        lines.append(f"KL to the other: {_interval(divergence)} nats an answer")
    lines.append(f"answers and votes: {found.folder}")
    return Group(Text(lines[0]), table, Text("\n".join(lines[1:])))


def _interval(row: dict[str, Any] | None) -> str:
    if row is None:
        return "–"
    if row["low"] is None:
        return f"{row['value']:.3f}"
    return f"{row['value']:.3f} [{row['low']:.3f}, {row['high']:.3f}]"
