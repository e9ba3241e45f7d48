"""A sweep as one HTML page: reward and win rate against KL, lengths, and all figures."""

from __future__ import annotations

from prefloop.data.shards import atomic_write_text
from prefloop.pipeline.report import plots
from prefloop.pipeline.report.pages import render_page
from prefloop.pipeline.report.plots import Point, Series, Words, lines, scatter
from prefloop.pipeline.sweep.sweep import Sweep, TrialFigure
from prefloop.pipeline.sweep.sweep_text import sweep_cells

_KL = "KL to the starting policy, nats an answer"


def write_sweep_page(found: Sweep) -> None:
    """Write the page. It is self-contained, and everything in it is escaped."""
    columns, rows = sweep_cells(found)
    page = render_page(
        "sweep.html.jinja",
        found=found,
        columns=columns,
        rows=rows,
        figures=_figures(found),
    )
    atomic_write_text(found.page, page)


def _figures(found: Sweep) -> list[plots.Figure]:
    known = [one for one in found.trials if "kl" in one.figures]
    scores = dict.fromkeys(
        name for one in known for name in one.figures if name.startswith("score by ")
    )
    drawn = []
    for number, name in enumerate(["win_rate", *scores]):
        points = [
            Point(one.label, _place(one.figures["kl"]), _place(one.figures[name]))
            for one in known
            if name in one.figures
        ]
        is_rate = name == "win_rate"
        title = "Win rate against KL" if is_rate else f"Mean {name} against KL"
        caption = (
            "What a policy gained over the starting policy, and how far it went for that. Further "
            "up and further left is better. Lines are intervals."
        )
        if points:
            words = Words(f"frontier-{number}", title, caption, x=_KL)
            reference = 0.5 if is_rate else None
            y = "win rate" if is_rate else name
            drawn.append(scatter(words, points, y=y, reference=reference))
    lengths = [one for one in found.trials if "mean_tokens" in one.figures]
    if lengths:
        series = Series(
            "tokens",
            list(range(len(lengths))),
            [one.figures["mean_tokens"].value for one in lengths],
        )
        words = Words(
            "lengths", "Mean length of held-out answers", "In tokens, by trial.", x="trial"
        )
        drawn.append(lines(words, [series], x_names=[str(n + 1) for n in range(len(lengths))]))
    return drawn


def _place(one: TrialFigure) -> tuple[float, float | None, float | None]:
    return one.value, one.low, one.high
