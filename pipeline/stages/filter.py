"""The filter stage: votes become decisions, and every decision is kept or dropped with a reason."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from prefloop.data.errors import NothingCameOut
from prefloop.labelers.config import (
    AcrossPolicies,
    BestVsLow,
    CorrectVsIncorrect,
    FilterConfig,
    Identical,
    LabelConfig,
    LengthBalance,
)
from prefloop.labelers.decisions.candidate_scores import mean_scores, scores_by
from prefloop.labelers.decisions.decide import NO_VALID_VOTE, TIE, decide
from prefloop.labelers.decisions.filters import (
    EMPTY_ANSWER,
    BalanceRows,
    apply_balance,
    apply_filters,
    balance_cutoff,
)
from prefloop.labelers.decisions.reasons import PAIR_STRATEGY
from prefloop.labelers.jury.round_jury import RoundJury
from prefloop.labelers.jury.verdict_table import VOTE_COLUMNS
from prefloop.labelers.people import without
from prefloop.pipeline.run.all_or_some import commonest, tally_notes
from prefloop.pipeline.run.context import RoundContext
from prefloop.pipeline.run.progress import StepProgress
from prefloop.pipeline.run.round_jury import load_round_jury
from prefloop.pipeline.run.run_dir import RoundDir, Stopwatch
from prefloop.pipeline.run.spans import spans_of
from prefloop.pipeline.stages.given import proposed

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
_CANDIDATE_COLUMNS = [
    "candidate_id",
    "prompt_id",
    "text",
    "tokens",
    "finish_reason",
    "policy",
    "policy_revision",
    "origin",
]


def filter_round(context: RoundContext, label: LabelConfig, filters: FilterConfig) -> None:
    """Write the decision shards of a round.

    Everything but the length balance looks at one prompt at a time. The balance needs the whole
    round, so a first pass writes decisions without it and remembers 17 bytes a kept pair, and a
    second pass applies the cut-off found in them.
    """
    folder = context.folder
    blocks = folder.votes.indices()
    missing = folder.decisions.missing(blocks)
    if not missing:
        shutil.rmtree(folder.unbalanced.folder, ignore_errors=True)  # where a kill came after it
        return
    watch = Stopwatch()
    balance = next((f for f in filters.filters if isinstance(f, LengthBalance)), None)
    first_pass = folder.decisions
    if balance:
        first_pass = folder.unbalanced
        missing = first_pass.missing(blocks)
    jury = load_round_jury(label, folder)
    with StepProgress(
        f"round {folder.index} filter", len(blocks), done=len(blocks) - len(missing), unit="blocks"
    ) as progress:
        for span in spans_of(folder, missing):
            first_pass.write_together(span, *decide_blocks(context, span, label, filters, jury))
            progress.advance(len(span))
    if balance:
        _balance(balance, folder)
        shutil.rmtree(first_pass.folder)
    context.note("filter", watch.lap())


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


def decide_blocks(
    context: RoundContext,
    blocks: Sequence[int],
    label: LabelConfig,
    filters: FilterConfig,
    jury: RoundJury,
) -> tuple[pa.Table, list[int]]:
    """Decisions (schema DECISION) on every pair of ``blocks``, one block after the other, but for
    the balance; and how many each block has."""
    folder = context.folder
    parts = [folder.candidates.read(index, _CANDIDATE_COLUMNS) for index in blocks]
    candidates = pa.concat_tables(parts).combine_chunks()
    pairs = proposed(context, candidates, label)
    votes = folder.votes.together(blocks, VOTE_COLUMNS)
    decisions = decide(
        votes,
        pairs,
        candidates,
        jury,
        round_index=context.index,
    )
    strategy = filters.strategy
    chooser = strategy.chooser if isinstance(strategy, AcrossPolicies) else strategy
    looks_at_scores = isinstance(chooser, BestVsLow | CorrectVsIncorrect)
    rewards = mean_scores(without(votes, label.silent)) if looks_at_scores else {}
    filtered = apply_filters(
        decisions,
        candidates,
        filters,
        seed=context.seed,
        rewards=rewards,
        scores=scores_by(votes, filters.scored_by),
    )
    owners = np.repeat(np.arange(len(blocks)), [len(part) for part in parts])
    prompts = candidates["prompt_id"].combine_chunks()
    of_row = owners[pc.index_in(filtered["prompt_id"], value_set=prompts).to_numpy()]
    by_block = filtered.take(pa.array(np.argsort(of_row, kind="stable")))
    return by_block, np.bincount(of_row, minlength=len(blocks)).tolist()


def _balance(rule: LengthBalance, folder: RoundDir) -> None:
    unbalanced, decisions = folder.unbalanced, folder.decisions
    spans = spans_of(folder, unbalanced.indices())
    cutoff = balance_cutoff([BalanceRows.of(unbalanced.together(span)) for span in spans], rule)
    for span in spans_of(folder, decisions.missing(unbalanced.indices())):
        rows = [unbalanced.rows([index]) for index in span]
        decisions.write_together(span, apply_balance(unbalanced.together(span), cutoff), rows)
