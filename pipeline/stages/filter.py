"""The filter stage: votes become decisions, and every decision is kept or dropped with a reason."""

from __future__ import annotations

import shutil

import pyarrow as pa

from prefloop.data.schemas import DECISION
from prefloop.data.shards import ShardFolder
from prefloop.labelers.config import LengthBalance
from prefloop.labelers.decisions.decide import decide
from prefloop.labelers.decisions.filters import (
    BalanceRows,
    apply_balance,
    apply_filters,
    balance_cutoff,
)
from prefloop.labelers.decisions.pairs import propose_pairs
from prefloop.labelers.jury.verdict_table import VOTE_COLUMNS
from prefloop.pipeline.config import RunConfig
from prefloop.pipeline.run.progress import StepProgress
from prefloop.pipeline.run.round_jury import RoundJury, load_round_jury
from prefloop.pipeline.run.run_dir import RoundDir, RunDir, Stopwatch

_CANDIDATE_COLUMNS = ["candidate_id", "prompt_id", "text", "tokens", "finish_reason"]


def filter_round(config: RunConfig, run: RunDir, folder: RoundDir) -> None:
    """Write the decision shards of a round.

    Everything but the length balance looks at one block at a time. The balance needs the whole
    round, so a first pass writes decisions without it and remembers 17 bytes a kept pair, and a
    second pass applies the cut-off found in them.
    """
    blocks = folder.votes.indices()
    missing = [index for index in blocks if not folder.decisions.exists(index)]
    if not missing:
        return
    watch = Stopwatch()
    balance = next((f for f in config.filter.filters if isinstance(f, LengthBalance)), None)
    first_pass = folder.decisions
    if balance:
        first_pass = ShardFolder(folder.root / "decision-unbalanced", DECISION)
        missing = [index for index in blocks if not first_pass.exists(index)]
    jury = load_round_jury(config, folder)
    with StepProgress(
        f"round {folder.index} filter", len(blocks), done=len(blocks) - len(missing), unit="blocks"
    ) as progress:
        for index in missing:
            first_pass.write(index, decide_block(config, folder, index, jury))
            progress.advance(1)
    if balance:
        _balance(balance, first_pass, folder.decisions)
        shutil.rmtree(first_pass.folder)
    run.note("filter", folder.index, watch.lap())


def decide_block(config: RunConfig, folder: RoundDir, index: int, jury: RoundJury) -> pa.Table:
    """Decisions (schema DECISION) on every pair of block ``index``, but for the balance."""
    candidates = folder.candidates.read(index, _CANDIDATE_COLUMNS)
    pairs = propose_pairs(candidates, per_prompt=config.label.pairs_per_prompt, seed=config.seed)
    decisions = decide(
        folder.votes.read(index, VOTE_COLUMNS),
        pairs,
        candidates,
        jury=config.label.jury,
        weights=config.label.weights,
        fitted=jury.fitted,
        calibrators=jury.calibrators,
        people=config.label.people,
        round_index=folder.index,
    )
    return apply_filters(decisions, candidates, config.filter, seed=config.seed)


def _balance(rule: LengthBalance, unbalanced: ShardFolder, decisions: ShardFolder) -> None:
    cutoff = balance_cutoff([BalanceRows.of(part) for part in unbalanced.iter()], rule)
    for index in unbalanced.indices():
        if not decisions.exists(index):
            decisions.write(index, apply_balance(unbalanced.read(index), cutoff))
