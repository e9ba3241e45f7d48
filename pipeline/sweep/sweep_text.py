"""A sweep for the terminal, and the table of its page."""

from __future__ import annotations

from prefloop.pipeline.report.formats import figure
from prefloop.pipeline.sweep.sweep import Sweep, TrialFigure
from prefloop.pipeline.sweep.swept import value_text

_WORDS = {
    "win_rate": "win rate",
    "length_controlled_win_rate": "length-controlled",
    "kl": "KL",
    "mean_tokens": "tokens",
    "reward_accuracy": "reward accuracy",
}


def sweep_cells(found: Sweep) -> tuple[list[str], list[list[str]]]:
    """Columns, and a row for each trial."""
    names = list(dict.fromkeys(name for one in found.trials for name in one.figures))
    order = [*(name for name in _WORDS if name in names), *(n for n in names if n not in _WORDS)]
    columns = [*found.keys, "triples", *(_WORDS.get(name, name) for name in order)]
    rows = [
        [
            *(value_text(one.settings.get(key)) for key in found.keys),
            "failed" if one.failed else f"{one.triples:,}",
            *(_cell(one.figures.get(name)) for name in order),
        ]
        for one in found.trials
    ]
    return columns, rows


def render_sweep(found: Sweep) -> str:
    """For the terminal: lines that are never wrapped, since a row is as long as it is."""
    columns, rows = sweep_cells(found)
    table = [columns, *rows]
    widths = [max(len(row[at]) for row in table) for at in range(len(columns))]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in table
    ]
    lines += [f"{one.label} failed: {one.failed}" for one in found.trials if one.failed]
    return "\n".join(
        [*lines, *found.notes, f"page      {found.page}", f"policies  {found.page.parent}"]
    )


def _cell(one: TrialFigure | None) -> str:
    if one is None:
        return "–"
    if one.low is None or one.high is None:
        return figure(one.value)
    return f"{one.value:z.3f} [{one.low:z.3f}, {one.high:z.3f}]"
