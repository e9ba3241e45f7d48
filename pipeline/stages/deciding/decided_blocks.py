"""The decisions on some blocks of a round, by a jury that is ready."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from prefloop.labelers.config import (
    AcrossPolicies,
    BestVsLow,
    CorrectVsIncorrect,
    FilterConfig,
    LabelConfig,
)
from prefloop.labelers.decisions.candidate_scores import mean_scores, scores_by
from prefloop.labelers.decisions.decide import decide
from prefloop.labelers.decisions.filters import apply_filters
from prefloop.labelers.jury.round_jury import RoundJury
from prefloop.labelers.jury.verdict_table import VOTE_COLUMNS
from prefloop.labelers.people import without
from prefloop.pipeline.run.context import RoundContext
from prefloop.pipeline.stages.given import proposed

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
