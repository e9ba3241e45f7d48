"""The filter stage: votes become decisions, and every decision is kept or dropped with a reason."""

from __future__ import annotations

import shutil

import numpy as np

from data.schemas import DECISION
from data.shards import ShardFolder
from labelers.config import LengthBalance
from labelers.decisions import decide
from labelers.filters import apply_balance, apply_filters, balance_cutoff
from labelers.pairs import propose_pairs
from pipeline.config import RunConfig
from pipeline.progress import StepProgress
from pipeline.run_dir import RoundDir, RunDir, Stopwatch

_CANDIDATE_COLUMNS = ["candidate_id", "prompt_id", "text", "tokens", "finish_reason"]
_VOTE_COLUMNS = [
    "pair_id", "prompt_id", "a_id", "b_id", "labeler", "order", "preference", "p_a", "score_a",
    "score_b",
]  # fmt: skip


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
    with StepProgress(
        f"round {folder.index} filter", len(blocks), done=len(blocks) - len(missing), unit="blocks"
    ) as progress:
        for index in missing:
            first_pass.write(index, decide_block(config, folder, index))
            progress.advance(1)
    if balance:
        _balance(balance, first_pass, folder.decisions)
        shutil.rmtree(first_pass.folder)
    run.note("filter", folder.index, watch.lap())
