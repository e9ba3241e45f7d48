"""The status of a run as people read it in a terminal."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from prefloop.pipeline.engines.openai.batch.job_folder import OpenJobs
from prefloop.pipeline.report.formats import count, duration, money, percent, short_count
from prefloop.pipeline.run.run_dir import JURY, OPPONENT
from prefloop.pipeline.run.shard_counts import Rate, Usage, WinRate
from prefloop.pipeline.run.status import (
    BLOCK_STAGES,
    MODEL_STAGES,
    KeptPolicy,
    Progress,
    PromptStatus,
    RoundStatus,
    RunStatus,
)

if TYPE_CHECKING:
    from prefloop.pipeline.run.final_split import FinalFigures

_SOURCES_SHOWN = 12
_ROUNDS_BESIDE_EACH_OTHER = 5


def render_status(status: RunStatus) -> RenderableType:
    """The status as text and tables for a terminal."""
    facts: dict[str, str | Text] = {
        "run": status.run_dir,
        "state": Text(status.state, style="bold"),
        "rounds": f"{len(status.rounds)} begun of {status.rounds_planned}",
        "spent": _spent(status),
    }
    if status.jobs:
        facts["jobs"] = "; ".join(map(_jobs, status.jobs))
    if status.keep:
        facts["keep"] = _kept(status.keep)
    if status.final:
        facts["final"] = _final(status.final)
    parts: list[RenderableType] = [
        Text.assemble((f"{name:<9}", "dim"), words) for name, words in facts.items()
    ]
    parts.append(_prompt_table(status.prompts))
    for first in range(0, len(status.rounds), _ROUNDS_BESIDE_EACH_OTHER):
        parts.append(_round_table(status.rounds[first : first + _ROUNDS_BESIDE_EACH_OTHER]))
    return Group(*parts)


def _jobs(jobs: OpenJobs) -> str:
    return (
        f"engines.{jobs.engine}: {jobs.jobs} batch {'job' if jobs.jobs == 1 else 'jobs'} open, "
        f"{count(jobs.done)} of {count(jobs.requests)} requests done when last asked"
    )


def _kept(kept: KeptPolicy) -> str:
    return (kept.policy or "the starting policy") + (f"  ({kept.because})" if kept.because else "")


def _final(final: FinalFigures) -> str:
    rate = final.win_rate
    return (
        f"win rate of round {final.round} against start {_rate_cell(rate)} of {rate.n}, "
        f"length-controlled {_rate_cell(rate.length_controlled) or 'not told'}, on prompts that no "
        f"decision saw; {final.judged_by}"
    )


def _spent(status: RunStatus) -> str:
    usage = status.usage
    total = duration(sum(status.seconds.values()))
    tokens = f"{short_count(usage.completion_tokens)} tokens generated"
    return f"{total}, {tokens}, {short_count(usage.prompt_tokens)} prompt tokens" + (
        f", cost {money(usage.cost)}" if usage.cost else ""
    )


def _prompt_table(prompts: PromptStatus) -> Table:
    table = Table(title="Prompts", title_justify="left", box=None, padding=(0, 2, 0, 0))
    table.add_column("", overflow="fold")
    table.add_column("", justify="right")
    table.add_row("read" if prompts.complete else "read so far", count(prompts.read))
    table.add_row("  kept", count(prompts.kept))
    for source, number in list(prompts.kept_by_source.items())[:_SOURCES_SHOWN]:
        table.add_row(Text(f"    {source}", style="dim"), Text(count(number), style="dim"))
    table.add_row("  held out for evaluation", count(prompts.heldout))
    for title, total, reasons in (
        ("dropped", prompts.dropped, prompts.dropped_by_reason),
        ("quarantined", prompts.quarantined, prompts.quarantined_by_reason),
    ):
        table.add_row(f"  {title}", count(total))
        for reason, number in reasons.items():
            table.add_row(Text(f"    {reason}", style="dim"), Text(count(number), style="dim"))
    table.show_header = False
    return table


def _round_table(rounds: tuple[RoundStatus, ...]) -> Table:
    table = Table(title="Rounds", title_justify="left", box=None, padding=(0, 2, 0, 0))
    table.add_column("", overflow="fold")
    for each in rounds:
        table.add_column(f"round {each.round}", justify="right")

    def row(title: str, cells: Iterable[str], style: str = "") -> None:
        table.add_row(Text(title, style=style), *(Text(cell, style=style) for cell in cells))

    row("state", (each.state for each in rounds), "bold")
    for stage in BLOCK_STAGES:
        row(f"  {stage} blocks", (_fraction(each.progress[stage]) for each in rounds), "dim")
    row("prompts", (count(each.prompts) for each in rounds))
    row("samples", (count(each.samples) for each in rounds))
    row("candidates (distinct)", (count(each.candidates) for each in rounds))
    row("votes", (count(sum(each.votes.values())) for each in rounds))
    for labeler in _keys(each.votes for each in rounds):
        row(f"  {labeler}", (_votes_cell(each, labeler) for each in rounds), "dim")
    row("pairs", (count(each.pairs) for each in rounds))
    row("= kept", (count(each.kept) for each in rounds))
    if any(each.not_chosen for each in rounds):
        row("+ not chosen by the pair strategy", (count(each.not_chosen) for each in rounds))
    dropped = [each.filtered_out for each in rounds]
    row("+ dropped", (count(sum(reasons.values())) for reasons in dropped))
    for reason in _keys(dropped):
        row(f"    {reason}", (count(reasons.get(reason, 0)) for reasons in dropped), "dim")
    flat = [_flat_quarantine(each) for each in rounds]
    row("quarantined", (count(sum(reasons.values())) for reasons in flat))
    for reason in _keys(flat):
        row(f"    {reason}", (count(reasons.get(reason, 0)) for reasons in flat), "dim")
    for stage in _keys(each.usage for each in rounds):
        parts = [each.usage.get(stage, Usage()) for each in rounds]
        row(f"tokens, {stage}", (short_count(part.completion_tokens) for part in parts))
        row("  of prompts", (short_count(part.prompt_tokens) for part in parts), "dim")
        if any(part.reasoning_tokens for part in parts):
            row("  thoughts", (short_count(part.reasoning_tokens) for part in parts), "dim")
    costs = [sum(part.cost for part in each.usage.values()) for each in rounds]
    if any(costs):
        row("cost", map(money, costs))
    for stage in (*BLOCK_STAGES, *MODEL_STAGES):
        if any(stage in each.seconds for each in rounds):
            row(f"time, {stage}", (duration(each.seconds.get(stage, 0)) for each in rounds))
    for against in ("start", "previous", OPPONENT):
        rates = [_jury_rate(each, against) for each in rounds]
        if any(rates):
            row(f"win rate against {against}", map(_rate_cell, rates), "bold")
            controlled = (rate and rate.length_controlled for rate in rates)
            row("  length-controlled", map(_rate_cell, controlled))
    return table


def _fraction(progress: Progress) -> str:
    return f"{progress.done}/{progress.total}"


def _keys(mappings: Iterable[Mapping[str, Any]]) -> list[str]:
    return list(dict.fromkeys(key for mapping in mappings for key in mapping))


def _votes_cell(status: RoundStatus, labeler: str) -> str:
    invalid = status.invalid_votes.get(labeler, 0)
    votes = count(status.votes.get(labeler, 0))
    return f"{votes} ({count(invalid)} invalid)" if invalid else votes


def _flat_quarantine(status: RoundStatus) -> dict[str, int]:
    return {
        f"{stage}: {reason}": number
        for stage, reasons in status.quarantined.items()
        for reason, number in reasons.items()
    }


def _jury_rate(status: RoundStatus, against: str) -> WinRate | None:
    return next(
        (rate for rate in status.win_rates if (rate.against, rate.labeler) == (against, JURY)), None
    )


def _rate_cell(rate: Rate | None) -> str:
    if rate is None:
        return ""
    if rate.low is None or rate.high is None:
        return percent(rate.value)
    return f"{percent(rate.value)} [{percent(rate.low)}, {percent(rate.high)}]"
