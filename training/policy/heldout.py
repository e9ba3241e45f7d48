"""What a policy's training makes of pairs that it has not seen: implicit rewards and accuracy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from prefloop.data.hashing import prompt_id
from prefloop.labelers.statistics.estimate import Estimate
from prefloop.labelers.statistics.winrate import win_rate
from prefloop.training.inputs.reward_pairs import prompts_in
from prefloop.training.policy.logprobs import answer_logprobs, reward_margin

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
    policy: Path, reference: Path, triples: pa.Table, beta: float
) -> NDArray[np.float64]:
    """``prefloop.training.policy.logprobs.reward_margin`` [N] of each row's chosen answer over its
    rejected one.

    ``triples`` has ``prompt``, ``chosen`` and ``rejected`` as in ``schemas.TRIPLE``.
    """
    prompts = triples["prompt"].to_pylist()
    of = {
        (side, model): answer_logprobs(
            model, prompts, [turn[0]["content"] for turn in triples[side].to_pylist()]
        )
        for side in ("chosen", "rejected")
        for model in (policy, reference)
    }
    return reward_margin(
        of["chosen", policy], of["rejected", policy],
        of["chosen", reference], of["rejected", reference], beta,
    )  # fmt: skip


def heldout_pairs(
    policy: Path, reference: Path, files: Sequence[Path], *, beta: float, trained_on: Sequence[Path]
) -> Heldout:
    """How often ``policy`` gives the chosen answers of ``files`` the higher implicit reward.

    The first ``MOST_PAIRS`` rows on prompts that are not in ``trained_on`` count.
    """
    columns = ["prompt", "chosen", "rejected"]
    table = pa.concat_tables([pq.read_table(file, columns=columns) for file in files])
    seen = prompts_in(trained_on)
    ids = [prompt_id(messages) for messages in table["prompt"].to_pylist()]
    fresh = [row for row, one in enumerate(ids) if one not in seen]
    dropped = {TRAINED_PROMPT: len(ids) - len(fresh)} if len(fresh) < len(ids) else {}
    fresh = fresh[:MOST_PAIRS]
    if not fresh:
        return Heldout(None, dropped)
    margins = implicit_margins(policy, reference, table.take(pa.array(fresh)), beta)
    right = np.sign(margins) / 2 + 0.5
    return Heldout(win_rate(right, clusters=[ids[row] for row in fresh]), dropped)
