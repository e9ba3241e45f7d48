"""What a policy's training makes of pairs that it has not seen: implicit rewards and accuracy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from prefloop.data.conversations.conversation import conversation_of
from prefloop.data.hashing import prompt_id
from prefloop.labelers.statistics.estimate import Estimate
from prefloop.labelers.statistics.winrate import win_rate
from prefloop.training.errors import TrainingError
from prefloop.training.inputs.pairs import tokenised, triples_in
from prefloop.training.inputs.rows import UNREADABLE, Dropped, prompts_in
from prefloop.training.policy.checkpoints import context_length, load_tokenizer
from prefloop.training.policy.logprobs import (
    Placement,
    ScoredTexts,
    answer_logprobs,
    reward_margin,
)

MOST_PAIRS = 256
"""Held-out pairs that a policy is measured on, at most: each is four forward passes."""
TRAINED_PROMPT = "trained_prompt"
"""Why a held-out pair was left out: the model was trained on its prompt."""


@dataclass(frozen=True)
class Heldout:
    """How often a model prefers the chosen answer.

    ``accuracy`` has Wilson's interval (see ``prefloop.labelers.statistics.winrate.win_rate``), with
    equal scores as half; null where no pair was left. ``dropped``: rows that do not count, by
    reason.
    """

    accuracy: Estimate | None
    dropped: dict[str, int]


def implicit_margins(
    policy: Path,
    reference: Path,
    triples: pa.Table,
    beta: float,
    *,
    template_kwargs: Mapping[str, Any] | None = None,
) -> NDArray[np.float64]:
    """``prefloop.training.policy.logprobs.reward_margin`` [N] of each row's chosen answer over its
    rejected one. ``triples``: see :func:`both_answers`."""
    texts = both_answers(triples, template_kwargs or {})
    of_policy, of_reference = (
        answer_logprobs(model, texts.prompts, texts.answers, template_kwargs=texts.template_kwargs)
        for model in (policy, reference)
    )
    return margins_between(of_policy, of_reference, beta)


def both_answers(triples: pa.Table, template_kwargs: Mapping[str, Any]) -> ScoredTexts:
    """The chosen answers of ``triples``, then the rejected ones: they share their prompts, and a
    model is loaded once for both.

    ``triples`` has ``prompt``, ``chosen`` and ``rejected`` as in ``schemas.TRIPLE``, and ``tools``
    and ``prompt_turns`` where prompts have any.
    """
    prompts = [
        conversation_of(row["prompt"], row.get("prompt_turns"), row.get("tools"))
        for row in triples.to_pylist()
    ]
    answers = [
        turns[0]["content"]
        for side in ("chosen", "rejected")
        for turns in triples[side].to_pylist()
    ]
    return ScoredTexts(prompts * 2, answers, template_kwargs=template_kwargs)


def margins_between(
    policy: NDArray[np.float64], reference: NDArray[np.float64], beta: float
) -> NDArray[np.float64]:
    """``reward_margin`` [N] of log-probabilities [2 N] of texts as :func:`both_answers` has
    them."""
    good, bad = np.split(policy, 2)
    reference_good, reference_bad = np.split(reference, 2)
    return reward_margin(good, bad, reference_good, reference_bad, beta)


def measurable(policy: Path, files: Sequence[Path], dropped: Dropped) -> pa.Table:
    """The pairs of ``files`` (as ``prefloop.training.inputs.pairs.read_triples`` gives them) that a
    policy can be measured on.

    Raises ``TrainingError`` for a file that is no Parquet or lacks a column, and where no row can
    be read.
    """
    table = triples_in(files, dropped)
    _, kept = tokenised(
        table, load_tokenizer(policy), max_length=context_length(policy), dropped=dropped
    )
    require_readable(files, len(kept), dropped)
    return table.take(pa.array(kept, pa.int64()))


def require_readable(files: Sequence[Path], readable: int, dropped: Dropped) -> None:
    """Raise ``TrainingError`` where ``files`` have rows, and none is ``readable``."""
    if not readable and set(dropped.counts) & {UNREADABLE, "unrenderable_chat"}:
        raise TrainingError(
            f"no held-out pair of {', '.join(map(str, files))} can be used: {dropped.said()}"
        )


def heldout_pairs(
    policy: Path,
    reference: Path,
    files: Sequence[Path],
    *,
    beta: float,
    trained_on: Sequence[Path],
    template_kwargs: Mapping[str, Any] | None = None,
) -> Heldout:
    """How often ``policy`` gives the chosen answers of ``files`` the higher implicit reward.

    The first ``MOST_PAIRS`` rows on prompts that are not in ``trained_on`` count.
    """
    lost = Dropped()
    table = measurable(policy, files, lost)
    seen = prompts_in(trained_on)
    ids = [prompt_id(messages) for messages in table["prompt"].to_pylist()]
    fresh = [row for row, one in enumerate(ids) if one not in seen]
    dropped = lost.as_dict()
    if len(fresh) < len(ids):
        dropped[TRAINED_PROMPT] = len(ids) - len(fresh)
    fresh = fresh[:MOST_PAIRS]
    if not fresh:
        return Heldout(None, dropped)
    used = table.take(pa.array(fresh))
    prompts = used["prompt"].to_pylist() * 2
    answers = [one for side in ("chosen", "rejected") for one in used[side].to_pylist()]
    # The training before it left the device free.
    at = Placement.fastest()
    of_policy, of_reference = (
        answer_logprobs(model, prompts, answers, template_kwargs=template_kwargs, at=at)
        for model in (policy, reference)
    )
    margins = margins_between(of_policy, of_reference, beta)
    right = np.sign(margins) / 2 + 0.5
    return Heldout(win_rate(right, clusters=[ids[row] for row in fresh]), dropped)
