"""The filter stage: votes become decisions, and every decision is kept or dropped with a reason."""

from __future__ import annotations

import shutil
from collections import Counter

import pyarrow.compute as pc

from prefloop.data.errors import NothingCameOut
from prefloop.labelers.config import FilterConfig, Identical, LabelConfig, LengthBalance
from prefloop.labelers.decisions.filters import EMPTY_ANSWER, BalanceRows, balance_cutoff
from prefloop.labelers.decisions.reasons import NO_VALID_VOTE, PAIR_STRATEGY, TIE
from prefloop.pipeline.executors.block_task import BlockFacts, Tables
from prefloop.pipeline.executors.units import run_units
from prefloop.pipeline.run.all_or_some import commonest, tally_notes
from prefloop.pipeline.run.context import RoundContext
from prefloop.pipeline.run.progress import StepProgress
from prefloop.pipeline.run.round_jury import keep_fit, load_round_jury, wants_fit
from prefloop.pipeline.run.run_dir import Stopwatch
from prefloop.pipeline.run.spans import SpanUnits, spans_of
from prefloop.pipeline.stages.deciding.deciding_jobs import (
    FILTER,
    Deciding,
    balance_rows_in,
    balancing_job,
    counting_job,
    deciding_job,
)

_LOOSEN = (
    "loosen {} in `filter`; none of them is marked done: the same command then decides again, and "
    "asks nobody"
)
_REMEDIES = {
    EMPTY_ANSWER: "raise sample.max_tokens or change the model, in a new --run-dir",
    NO_VALID_VOTE: "label the same answers by others: "
    "`prefloop relabel RUN_DIR --judge FILE --adopt`",
    TIE: "change `label.jury` or the labelers' weights (the same command then decides again, and "
    "asks nobody), or label the same answers by others: "
    "`prefloop relabel RUN_DIR --judge FILE --adopt`",
    Identical().type: "the answers to a prompt are alike: raise sample.temperature, in a new "
    "--run-dir",
    PAIR_STRATEGY: _LOOSEN.format("strategy"),
}
"""What to change where most pairs were dropped for a reason that is no filter of the user's."""


async def filter_round(context: RoundContext, label: LabelConfig, filters: FilterConfig) -> None:
    """Write the decision shards of a round.

    Everything but the length balance, and the fit of a jury, looks at one prompt at a time. The
    balance needs the whole round, so a first pass writes decisions without it and finds 17 bytes a
    kept pair, and a second pass applies the cut-off found in them.
    """
    folder = context.folder
    blocks = folder.votes.indices()
    missing = folder.decisions.missing(blocks)
    if not missing:
        shutil.rmtree(folder.unbalanced.folder, ignore_errors=True)  # where a kill came after it
        return
    watch = Stopwatch()
    # Of all blocks, whichever are there: so a kill changes nothing of what is in which file.
    spans = spans_of(folder, blocks)
    await _fit_jury(context, label, SpanUnits.of(spans))
    deciding = Deciding(label, filters, load_round_jury(label, folder))
    units = SpanUnits.of(spans, {*blocks} - {*missing})
    if deciding.balance is None:
        await _decide(context, deciding, units)
    else:
        await _decide_balanced(context, deciding, deciding.balance, units)
    context.note(FILTER, watch.lap())


async def _fit_jury(context: RoundContext, label: LabelConfig, units: SpanUnits) -> None:
    if not wants_fit(label, context.folder.jury):
        return
    counted: dict[int, Tables] = {}

    def heard(facts: BlockFacts) -> None:
        counted[facts.block] = facts.found

    job = counting_job(context, label, units)
    await run_units(context.executor, job, list(units.spans), heard)
    keep_fit(label, [counted[unit] for unit in units.spans], context.folder.jury)


async def _decide(context: RoundContext, deciding: Deciding, units: SpanUnits) -> list[BalanceRows]:
    """Decide what is missing; returns what a balance has to know, of all, where there is one."""
    found: dict[int, BalanceRows] = {}
    todo = [unit for unit in units.spans if deciding.balance or units.missing(unit)]
    sizes = {unit: len(units.missing(unit)) for unit in todo}
    total = sum(len(units.blocks(unit)) for unit in units.spans)
    title = f"round {context.index} filter"
    done = total - sum(sizes.values())
    with StepProgress(title, total, done=done, unit="blocks") as progress:

        def heard(facts: BlockFacts) -> None:
            progress.advance(sizes[facts.block])
            if facts.found:
                found[facts.block] = balance_rows_in(*facts.found)

        await run_units(context.executor, deciding_job(context, deciding, units), todo, heard)
    return [found[unit] for unit in sorted(found)]


async def _decide_balanced(
    context: RoundContext, deciding: Deciding, rule: LengthBalance, units: SpanUnits
) -> None:
    unbalanced = context.folder.unbalanced
    blocks = [index for unit in units.spans for index in units.blocks(unit)]
    there = {*blocks} - {*unbalanced.missing(blocks)}
    rows = await _decide(context, deciding, SpanUnits(units.spans, frozenset(there)))
    job = balancing_job(context, balance_cutoff(rows, rule), units)
    todo = [unit for unit in units.spans if units.missing(unit)]
    await run_units(context.executor, job, todo)
    shutil.rmtree(unbalanced.folder)


def require_kept(context: RoundContext) -> None:
    """Raise ``NothingCameOut`` where a round has decisions and keeps no pair.

    Nothing then says that it was filtered or written: other filters do the work anew.
    """
    folder = context.folder
    nothing = why_none_kept(context)
    if nothing is None:
        return
    for shards in (folder.triples, folder.decisions):
        shutil.rmtree(shards.folder, ignore_errors=True)
    folder.written.unlink(missing_ok=True)
    raise nothing


def why_none_kept(context: RoundContext) -> NothingCameOut | None:
    """Why no pair of the round is kept, with the commonest reason; null where one is."""
    folder = context.folder
    reasons: Counter[str] = Counter()
    for decisions in folder.decisions.iter(["kept", "reason"]):
        if pc.any(decisions["kept"], min_count=0).as_py():
            return None
        reasons.update(decisions["reason"].to_pylist())
    if not reasons:
        return NothingCameOut(
            f"round {context.index}: there is no pair to decide: no prompt has two different "
            "answers (of two policies, where label.pairs is across_policies). Raise sample.n or "
            "sample.temperature, in a new --run-dir"
        )
    [(reason, times)] = reasons.most_common(1)
    notes = tally_notes(folder.votes) if reason == NO_VALID_VOTE else Counter()
    why = f" ({commonest(notes)})" if notes else ""
    remedy = _REMEDIES.get(reason, _LOOSEN.format(reason))
    return NothingCameOut(
        f"round {context.index}: all {reasons.total()} pairs were dropped, {times} of them by "
        f"{reason}{why}: {remedy.replace('RUN_DIR', str(context.run.root))}"
    )
