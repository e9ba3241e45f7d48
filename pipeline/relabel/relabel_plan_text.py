"""The plan of a relabelling, as people read it in a terminal."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from prefloop.pipeline.relabel.relabel_plan import RelabelPlan
from prefloop.pipeline.report.formats import count, duration, money, short_count


def render_relabel_plan(plan: RelabelPlan) -> RenderableType:
    """The plan as text and a table."""
    total = plan.as_dict()["total"]
    facts = {
        "votes": f"{count(total['votes'])} to be asked for, into relabels/{plan.folder.name}",
        "requests": count(total["requests"]),
        "tokens": f"{short_count(total['tokens'])} expected, "
        f"{short_count(total['max_tokens'])} at most",
        "cost": f"{money(total['cost'])} expected, {money(total['max_cost'])} at most",
        "time": f"about {duration(total['seconds'])}",
    }
    parts: list[RenderableType] = [
        Text.assemble((f"{name:<10}", "dim"), words) for name, words in facts.items()
    ]
    parts.append(Padding(_table(plan), (1, 0)))
    if plan.memory:
        parts.append(Text("Memory", style="italic"))
        parts += [Text(f"{one.device}: {one.line()}") for one in plan.memory]
        parts.append(Text(""))
    parts += [Text(f"Warning: {warning}", style="bold yellow") for warning in plan.warnings]
    parts.append(Text("Assumed:", style="dim"))
    parts += [Text(f"  - {assumption}", style="dim") for assumption in plan.assumptions]
    return Group(*parts)


def _table(plan: RelabelPlan) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), title="Labelers", title_justify="left")
    table.add_column("who", overflow="fold")
    for column in ("there", "pairs", "votes", "tokens", "at most", "cost", "time"):
        table.add_column(column, justify="right")
    for one in plan.labelers:
        engine = next((step.engine for step in one.steps), None)
        table.add_row(
            Text(one.labeler + (f" ({engine})" if engine else "")),
            count(one.there),
            count(one.pairs),
            count(one.votes),
            short_count(sum(step.prompt_tokens + step.completion_tokens for step in one.steps)),
            short_count(sum(step.max_tokens for step in one.steps)),
            money(sum(step.cost for step in one.steps)),
            duration(sum(step.seconds for step in one.steps)),
        )
    return table
