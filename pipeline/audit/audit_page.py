"""An audit for people: in the terminal and as one HTML page."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from prefloop.pipeline.audit.check import Audit
from prefloop.pipeline.report.formats import figure, percent
from prefloop.pipeline.report.pages import render_page
from prefloop.pipeline.report.plots import Bars, Figure, histogram

if TYPE_CHECKING:
    from rich.console import Group

_STYLES = {"error": "bold red", "warning": "yellow", "info": "dim"}


def render_audit(found: Audit) -> Group:
    """For the terminal."""
    from rich.console import Group
    from rich.text import Text

    lines = [
        f"{found.source}: {found.rows:,} rows, {found.pairs:,} pairs, "
        f"{found.prompts:,} prompts ({found.prompts_with_several:,} with several pairs)"
    ]
    for one in found.lengths:
        share = ""
        if one.share is not None and one.low is not None and one.high is not None:
            share = (
                f"; chosen is longer in {percent(one.share)} [{percent(one.low)}, "
                f"{percent(one.high)}] of unequal pairs"
            )
            if one.rank_correlation is not None:
                share += f", rank correlation {one.rank_correlation:+.3f}"
        lines.append(
            f"{one.unit}: chosen {figure(one.chosen.mean)}, rejected {figure(one.rejected.mean)} "
            f"on average{share}: {one.words}"
        )
    parts = [Text("\n".join(lines))]
    for finding in found.findings:
        head = Text.assemble(
            (f"{finding.severity:<8}", _STYLES[finding.severity]),
            f"{finding.name}: {finding.count:,} rows, {percent(finding.share)}: {finding.what}",
        )
        parts += [head, Text(f"        {finding.remedy}", style="dim")]
        parts += [
            Text(f"        {one}", style="dim", overflow="fold") for one in finding.examples[:2]
        ]
    if not found.findings:
        parts.append(Text("nothing found"))
    return Group(*parts)


def audit_page(found: Audit) -> str:
    """One self-contained HTML page; everything out of the dataset is escaped."""
    return render_page(
        "audit.html.jinja",
        found=found,
        figures=[_histogram(unit, *each) for unit, each in found.histograms.items()],
        kept=int((found.drops == 0).sum()),
    )


def _histogram(unit: str, edges: list[int], chosen: list[int], rejected: list[int]) -> Figure:
    return histogram(
        f"length-{unit}",
        f"Length of the answers in {unit}",
        np.array(edges, dtype=np.float64),
        [Bars("chosen", np.array(chosen)), Bars("rejected", np.array(rejected))],
        x_label=unit,
        caption="The longest hundredth of the answers stands in the last bin.",
    )
