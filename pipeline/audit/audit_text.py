"""An audit as people read it in a terminal."""

from __future__ import annotations

from rich.console import Group
from rich.text import Text

from prefloop.pipeline.audit.check import Audit
from prefloop.pipeline.report.formats import figure, percent

_STYLES = {"error": "bold red", "warning": "yellow", "info": "dim"}


def render_audit(found: Audit) -> Group:
    """For the terminal."""
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
                share += f", rank correlation {one.rank_correlation:+z.3f}"
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
