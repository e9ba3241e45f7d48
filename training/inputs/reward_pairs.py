"""Triples from Parquet files as the conversations that a reward model reads, in token ids.

A row that cannot be used is dropped and counted by reason; it takes no other row with it:

* ``unreadable``: prompt is not a conversation, chosen or rejected not one assistant message, or a
  text no UTF-8 (see ``prefloop.training.inputs.rows``);
* ``same_answer``: chosen and rejected are the same tokens;
* ``unrenderable_chat``: the chat template refuses the conversation;
* ``context_overflow``: a conversation is longer than ``max_length``; cutting would hide its end;
* ``no_margin``: the margin is no finite number (only where margins are asked for).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from prefloop.data.hashing import content_id, prompt_id
from prefloop.data.protocol import RequestRejected
from prefloop.labelers.scorers.sequence_scores import conversation_tokens
from prefloop.training.inputs.rows import Dropped, TripleRow, pair_rows, require_columns
from prefloop.training.inputs.tokens import OVERLONG

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_MARGIN = "margin"


@dataclass(frozen=True)
class RewardPairs:
    """N pairs of conversations as token ids, and why others were dropped."""

    chosen: list[list[int]]
    rejected: list[list[int]]
    prompts: list[str]
    """Id of each pair's prompt [N]: a hash of its messages."""
    margins: list[float] | None
    """Gap asked for [N]; null where none is."""
    dropped: dict[str, int]
    """Rows dropped, by reason."""

    def __len__(self) -> int:
        return len(self.chosen)

    def digest(self) -> str:
        """Hash of all token ids and margins in their order."""
        columns = [_digest(column) for column in (self.chosen, self.rejected)]
        return content_id(*columns, "" if self.margins is None else repr(self.margins))

    def take(self, rows: Sequence[int] | NDArray[np.int64]) -> RewardPairs:
        """The pairs at ``rows``; the counts of dropped rows stay."""
        return RewardPairs(
            chosen=[self.chosen[row] for row in rows],
            rejected=[self.rejected[row] for row in rows],
            prompts=[self.prompts[row] for row in rows],
            margins=None if self.margins is None else [self.margins[row] for row in rows],
            dropped=self.dropped,
        )

    def table(self) -> pa.Table:
        """Columns ``chosen_ids``, ``rejected_ids`` and, with margins, ``margin``: what TRL's
        collator reads."""
        ids = pa.large_list(pa.int32())
        columns = {
            "chosen_ids": pa.array(self.chosen, ids),
            "rejected_ids": pa.array(self.rejected, ids),
        }
        if self.margins is not None:
            columns[_MARGIN] = pa.array(self.margins, pa.float32())
        return pa.table(columns)


def read_reward_pairs(
    files: Sequence[Path],
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_length: int,
    with_margin: bool = False,
    dropped: Dropped | None = None,
) -> RewardPairs:
    """The pairs of ``files`` in their order.

    The files are Parquet with the columns ``prompt`` (a conversation), ``chosen`` and
    ``rejected`` (one assistant message each), and ``margin`` for ``with_margin``. Raises
    ``TrainingError`` for a file that is no Parquet or lacks a column, and ``EngineFailed`` for a
    tokenizer without a usable chat template. ``dropped`` says where rows that are not used stand.
    """
    if with_margin:
        require_columns(files, [_MARGIN])
    lost = Dropped() if dropped is None else dropped
    kept: list[tuple[list[int], list[int], str, float]] = []
    for row in pair_rows(files, lost):
        try:
            kept.append(_pair(row, tokenizer, max_length, with_margin))
        except RequestRejected as refused:
            lost.add(refused.reason, row.where, refused.detail)
    return RewardPairs(
        chosen=[one[0] for one in kept],
        rejected=[one[1] for one in kept],
        prompts=[one[2] for one in kept],
        margins=[one[3] for one in kept] if with_margin else None,
        dropped=lost.as_dict(),
    )


def _pair(
    row: TripleRow, tokenizer: PreTrainedTokenizerBase, max_length: int, with_margin: bool
) -> tuple[list[int], list[int], str, float]:
    """Both conversations, the prompt's id and the margin. Raises ``RequestRejected`` for a row
    that cannot be used."""
    if with_margin and not math.isfinite(row.margin):
        raise RequestRejected("no_margin", "margin is no finite number")
    chosen, rejected = (
        conversation_tokens(tokenizer, row.prompt, answer) for answer in (row.chosen, row.rejected)
    )
    if chosen == rejected:
        raise RequestRejected("same_answer", "chosen and rejected are the same answer")
    longest = max(len(chosen), len(rejected))
    if longest > max_length:
        raise RequestRejected(OVERLONG, f"{longest} tokens are over {max_length}")
    return chosen, rejected, prompt_id(row.prompt), row.margin


def _digest(column: Sequence[Sequence[int]]) -> str:
    lengths = np.array([len(ids) for ids in column], dtype=np.int64)
    flat = np.concatenate(column) if column else np.empty(0)
    return content_id(lengths.tobytes().hex(), flat.astype(np.int32).tobytes().hex())
