"""The decisions on some blocks of a round, by a jury that is ready."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from prefloop.data.arrays import Ints, as_arrow, places_in
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
    candidates, answers = folder.candidates.gathered(blocks, _CANDIDATE_COLUMNS)
    pairs = proposed(context, candidates, label)
    by_block, rows = _by_block(pairs, candidates["prompt_id"], answers)
    pairs = pairs.take(as_arrow(by_block))
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
    return filtered, rows


def _by_block(
    pairs: pa.Table, prompts: pa.ChunkedArray, answers: Sequence[int]
) -> tuple[Ints, list[int]]:
    """The rows of ``pairs``, one block after the other, and how many each block has; ``prompts``
    are those of the candidates, of which each block has so many ``answers``."""
    [of_pair] = places_in(prompts, pairs["prompt_id"])
    block = np.repeat(np.arange(len(answers)), answers)[of_pair]
    return np.argsort(block, kind="stable"), np.bincount(block, minlength=len(answers)).tolist()
