"""Triples from Parquet files as the conversations that a reward model reads, in token ids.

A row that cannot be used is dropped and counted by reason; it takes no other row with it:

* ``unreadable``: prompt is not a list of messages, chosen or rejected not one assistant message, or
  a text no UTF-8;
* ``same_answer``: chosen and rejected are the same tokens;
* ``unrenderable_chat``: the chat template refuses the conversation;
* ``context_overflow``: a conversation is longer than ``max_length``; cutting would hide its end;
* ``no_margin``: the margin is no finite number (only where margins are asked for).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeGuard

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from prefloop.data.hashing import content_id, prompt_id
from prefloop.data.protocol import Message, RequestRejected
from prefloop.labelers.scorers.sequence_scores import conversation_tokens
from prefloop.training.errors import TrainingError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

COLUMNS = ("prompt", "chosen", "rejected")
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
) -> RewardPairs:
    """The pairs of ``files`` in their order.

    The files are Parquet with the columns ``prompt`` (a conversation), ``chosen`` and
    ``rejected`` (one assistant message each), and ``margin`` for ``with_margin``. Raises
    ``TrainingError`` for a file that is no Parquet or lacks a column, and ``EngineFailed`` for a
    tokenizer without a usable chat template.
    """
    wanted = [*COLUMNS, _MARGIN] if with_margin else list(COLUMNS)
    dropped: Counter[str] = Counter()
    kept: list[tuple[list[int], list[int], str, float]] = []
    for file in files:
        for row in _rows(file, wanted):
            pair = _pair(row, tokenizer, max_length, with_margin)
            if isinstance(pair, str):
                dropped[pair] += 1
            else:
                kept.append(pair)
    return RewardPairs(
        chosen=[one[0] for one in kept],
        rejected=[one[1] for one in kept],
        prompts=[one[2] for one in kept],
        margins=[one[3] for one in kept] if with_margin else None,
        dropped=dict(sorted(dropped.items())),
    )


def prompts_in(files: Sequence[Path]) -> set[str]:
    """Ids of the prompts of ``files``; rows without a readable one are passed over."""
    return {
        prompt_id(row["prompt"])
        for file in files
        for row in _rows(file, ["prompt"])
        if _is_conversation(row.get("prompt"))
    }


def _rows(file: Path, columns: Sequence[str]) -> Iterator[dict[str, Any]]:
    try:
        with pq.ParquetFile(file) as parquet:
            missing = [name for name in columns if name not in parquet.schema_arrow.names]
            if missing:
                raise TrainingError(
                    f"{file}: has no column {missing[0]!r}: triples have prompt, chosen and "
                    "rejected, each a list of {role, content}"
                )
            for batch in parquet.iter_batches(batch_size=1024, columns=list(columns)):
                try:
                    yield from batch.to_pylist()
                except UnicodeDecodeError:
                    yield from (_single_row(batch.slice(row, 1)) for row in range(len(batch)))
    except (OSError, pa.ArrowException) as error:
        first = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise TrainingError(f"{file}: cannot be read as Parquet: {first}") from None


def _single_row(batch: pa.RecordBatch) -> dict[str, Any]:
    """The row of a batch of one; empty where a string in it is no UTF-8."""
    try:
        row: dict[str, Any] = batch.to_pylist()[0]
    except UnicodeDecodeError:
        return {}
    return row


def _pair(
    row: Mapping[str, Any],
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    with_margin: bool,
) -> tuple[list[int], list[int], str, float] | str:
    """Both conversations, the prompt's id and the margin; or why the row cannot be used."""
    margin = 0.0
    if with_margin:
        given = row.get(_MARGIN)
        if not isinstance(given, int | float) or not math.isfinite(given):
            return "no_margin"
        margin = float(given)
    messages = row.get("prompt")
    answers = [_answer(row.get(side)) for side in ("chosen", "rejected")]
    if not _is_conversation(messages) or None in answers:
        return "unreadable"
    try:
        chosen, rejected = (
            conversation_tokens(tokenizer, messages, str(answer)) for answer in answers
        )
    except RequestRejected as refused:
        return refused.reason
    if chosen == rejected:
        return "same_answer"
    if max(len(chosen), len(rejected)) > max_length:
        return "context_overflow"
    return chosen, rejected, prompt_id(messages), margin


def _answer(turns: Any) -> str | None:
    match turns:
        case [{"role": "assistant", "content": str(text)}]:
            return text
    return None


def _is_conversation(messages: Any) -> TypeGuard[list[Message]]:
    return isinstance(messages, list) and bool(messages) and all(map(_is_message, messages))


def _is_message(message: Any) -> bool:
    match message:
        case {"role": str(), "content": str()}:
            return True
    return False


def _digest(column: Sequence[Sequence[int]]) -> str:
    lengths = np.array([len(ids) for ids in column], dtype=np.int64)
    flat = np.concatenate(column) if column else np.empty(0)
    return content_id(lengths.tobytes().hex(), flat.astype(np.int32).tobytes().hex())
