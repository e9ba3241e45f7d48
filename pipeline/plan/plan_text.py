"""A plan as people read it in a terminal."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from prefloop.pipeline.plan.plan import Plan
from prefloop.pipeline.plan.steps import BothPrices
from prefloop.pipeline.report.formats import count, duration, money, short_count, size


def render_plan(plan: Plan) -> RenderableType:
    """The plan as text and tables for a terminal."""
    prompts = plan.prompts
    sizes = ", ".join(count(number) for number in plan.prompts_per_round)
    facts = {
        "prompts": f"{count(prompts.read)} read = {count(prompts.kept)} kept + "
        f"{count(prompts.heldout)} held out + {count(prompts.dropped)} dropped + "
        f"{count(prompts.quarantined)} quarantined",
        "rounds": f"{len(plan.prompts_per_round)}, with {sizes} prompts",
        "requests": f"{count(plan.requests)} at most",
        "tokens": f"{short_count(plan.tokens)} expected, {short_count(plan.max_tokens)} at most",
        "cost": f"{money(plan.cost)} expected, {money(plan.max_cost)} at most",
        "time": f"about {duration(plan.seconds)}",
    }
    if plan.disk:
        facts["disk"] = (
            f"{size(plan.disk.kept)} of policies, {size(plan.disk.meanwhile)} more while a round "
            f"trains; a round's snapshots write {size(plan.disk.written)}"
        )
    parts: list[RenderableType] = [
        Text.assemble((f"{name:<10}", "dim"), words) for name, words in facts.items()
    ]
    parts += [Text.assemble((f"{'price':<10}", "dim"), _price(one)) for one in plan.prices]
    parts.append(Padding(_step_table(plan), (1, 0)))
    if plan.training:
        parts.append(Padding(_training_table(plan), (0, 0, 1, 0)))
    if plan.memory:
        parts.append(Text("Memory", style="italic"))
        parts += [Text(f"{one.device}: {one.line()}") for one in plan.memory]
        parts.append(Text(""))
    for warning in plan.warnings:
        parts.append(Text(f"Warning: {warning}", style="bold yellow"))
    parts.append(Text("Assumed:", style="dim"))
    parts += [Text(f"  - {assumption}", style="dim") for assumption in plan.assumptions]
    return Group(*parts)


def _price(both: BothPrices) -> str:
    live, batch = (
        f"{money(cost)} {how}{' as set' if both.mode == mode else ''} (mode: {mode})"
        for mode, how, cost in (
            ("live", "asked at once", both.live),
            ("batch", "in batch jobs", both.batch),
        )
    )
    where = ", where its server has them" if both.mode == "live" else ""
    return f"engines.{both.engine}: {live}, {batch}{where}"


def _step_table(plan: Plan) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), title="Requests", title_justify="left")
    for column in ("round", "stage", "who"):
        table.add_column(column)
    for column in ("requests", "tokens in", "out", "all, at most", "cost", "time"):
        table.add_column(column, justify="right")
    for step in plan.steps:
        who = step.what + (f" ({step.engine})" if step.engine else "")
        table.add_row(
            str(step.round),
            step.stage,
            Text(who),
            count(step.requests),
            short_count(step.prompt_tokens),
            short_count(step.completion_tokens),
            short_count(step.max_tokens),
            money(step.cost),
            duration(step.seconds),
        )
    return table


def _training_table(plan: Plan) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), title="Training", title_justify="left")
    for column in ("round", "examples, at most", "steps", "time"):
        table.add_column(column, justify="right")
    for each in plan.training:
        table.add_row(
            str(each.round), count(each.examples), count(each.steps), duration(each.seconds)
        )
    return table
