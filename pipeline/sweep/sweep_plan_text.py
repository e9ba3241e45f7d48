"""The plan of a sweep, as people read it in a terminal."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from prefloop.pipeline.report.formats import count, duration, money, short_count
from prefloop.pipeline.sweep.sweep_plan import SweepPlan


def render_sweep_plan(plan: SweepPlan) -> RenderableType:
    """Sums, and a line for what is shared and for each trial."""
    total = plan.total
    facts = {
        "trials": f"{count(len(plan.trials))}, over the same answers and votes",
        "requests": f"{count(round(total['requests']))} at most",
        "tokens": f"{short_count(round(total['tokens']))} expected, "
        f"{short_count(round(total['max_tokens']))} at most",
        "cost": f"{money(total['cost'])} expected, {money(total['max_cost'])} at most",
        "time": f"about {duration(total['seconds'])}",
    }
    parts: list[RenderableType] = [
        Text.assemble((f"{name:<10}", "dim"), words) for name, words in facts.items()
    ]
    parts.append(Padding(_table(plan), (1, 0)))
    memory = [f"{one.device}: {one.line()}" for each in plan.plans for one in each.memory]
    if memory:
        parts.append(Text("Memory", style="italic"))
        parts += [Text(line) for line in dict.fromkeys(memory)]
        parts.append(Text(""))
    parts += [Text(f"Warning: {warning}", style="bold yellow") for warning in plan.warnings]
    parts.append(Text("Assumed:", style="dim"))
    assumed = [line for each in plan.plans for line in each.assumptions]
    parts += [Text(f"  - {line}", style="dim") for line in dict.fromkeys(assumed)]
    return Group(*parts)


def _table(plan: SweepPlan) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), title="Trials", title_justify="left")
    table.add_column("", overflow="fold")
    for column in ("requests", "tokens", "at most", "cost", "steps", "time"):
        table.add_column(column, justify="right")
    rows = [("shared", plan.shared), *((one.label, one.plan) for one in plan.trials)]
    for name, part in rows:
        table.add_row(
            Text(name),
            count(part.requests),
            short_count(part.tokens),
            short_count(part.max_tokens),
            money(part.cost),
            count(sum(one.steps for one in part.training)),
            duration(part.seconds),
        )
    return table
