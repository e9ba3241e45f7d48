"""Triples from Parquet shards as token ids, ready to train on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from prefloop.data.conversations.conversation import FULL
from prefloop.data.hashing import content_id
from prefloop.data.protocol import RequestRejected
from prefloop.data.schemas import MESSAGES
from prefloop.training.errors import TrainingError
from prefloop.training.inputs.rendering import Rendering
from prefloop.training.inputs.rows import Dropped, pair_rows
from prefloop.training.inputs.tokens import (
    OVERLONG,
    RenderedPrompts,
    TokenIds,
    answer_ids,
    end_token,
)

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_ROWS = 1024
_TURN = pa.struct([*MESSAGES.value_type, pa.field(FULL, pa.string())])
_SCHEMA = pa.schema(
    [
        ("prompt", pa.list_(_TURN)),
        ("chosen", pa.string()),
        ("rejected", pa.string()),
        ("p_chosen", pa.float64()),
        ("margin", pa.float64()),
        ("where", pa.string()),
        ("chosen_id", pa.string()),
        ("rejected_id", pa.string()),
    ]
)


@dataclass(frozen=True)
class Pairs:
    """N pairs as token ids, and how many more were too long."""

    prompts: list[TokenIds]
    chosen: list[TokenIds]
    rejected: list[TokenIds]
    p_chosen: list[float]
    """The jury's probability that chosen is preferred; 1 where nobody said."""
    dropped_overlong: int

    def __len__(self) -> int:
        return len(self.prompts)

    def digest(self) -> str:
        """Hash of all token ids and probabilities in their order."""
        return content_id(self.token_digest(), np.array(self.p_chosen).tobytes().hex())

    def token_digest(self) -> str:
        """Hash of all token ids in their order."""
        return content_id(*map(digest_of, (self.prompts, self.chosen, self.rejected)))

    def lengths(self) -> list[int]:
        """Tokens of the prompt and the longer answer of each pair."""
        return [
            len(prompt) + max(len(chosen), len(rejected))
            for prompt, chosen, rejected in zip(
                self.prompts, self.chosen, self.rejected, strict=True
            )
        ]

    def table(self) -> pa.Table:
        """Columns ``prompt_ids``, ``chosen_ids``, ``rejected_ids``, as the collator wants, and
        ``p_chosen``."""
        ids = pa.large_list(pa.int32())
        return pa.table(
            {
                "prompt_ids": pa.array(self.prompts, ids),
                "chosen_ids": pa.array(self.chosen, ids),
                "rejected_ids": pa.array(self.rejected, ids),
                "p_chosen": pa.array(self.p_chosen, pa.float64()),
            }
        )


def read_triples(shards: Sequence[Path], dropped: Dropped | None = None) -> pa.Table:
    """The pairs of ``shards`` (Parquet of ``schemas.TRIPLE``, or of others) in their order, with
    ``prompt`` as a conversation, ``chosen`` and ``rejected`` as texts, ``p_chosen`` (1 where
    nobody said), ``margin`` and the row's place ``where``.

    Raises ``TrainingError`` where there are none. Rows that cannot be read are put into
    ``dropped``.
    """
    dropped = Dropped() if dropped is None else dropped
    table = triples_in(shards, dropped)
    if table.num_rows == 0:
        if dropped.counts:
            raise TrainingError(f"there are no triples to train on: {dropped.said()}")
        raise TrainingError(
            "there are no triples to train on: loosen the filters that dropped all pairs "
            "(prefloop status shows which), or sample more candidates per prompt"
        )
    return table


def triples_in(shards: Sequence[Path], dropped: Dropped) -> pa.Table:
    """``read_triples``, which may find none."""
    rows = pair_rows(shards, dropped)
    parts = iter(lambda: [vars(row) for row in islice(rows, _ROWS)], [])
    return pa.Table.from_batches(
        (pa.RecordBatch.from_pylist(part, schema=_SCHEMA) for part in parts), schema=_SCHEMA
    )


def add_replay(triples: pa.Table, shards: Sequence[Path], *, share: float, seed: int) -> pa.Table:
    """``triples`` and behind them some of ``shards``, drawn by ``seed``, until these are ``share``
    of all, or used up."""
    earlier = triples_in(shards, Dropped())
    wanted = round(triples.num_rows * share / (1 - share))
    return pa.concat_tables([triples, draw_triples(earlier, wanted, seed)])


def draw_triples(triples: pa.Table, most: int, seed: int) -> pa.Table:
    """At most ``most`` of the rows, drawn by ``seed``, in their order."""
    drawn = np.random.default_rng(seed).permutation(triples.num_rows)[:most]
    return triples.take(np.sort(drawn))


def largest_margin_first(triples: pa.Table) -> pa.Table:
    """The rows in the order of their margins."""
    # What has no margin stands last.
    return triples.take(np.argsort(-triples["margin"].to_numpy(), kind="stable"))


def token_pairs(
    triples: pa.Table,
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_length: int,
    dropped: Dropped | None = None,
    rendering: Rendering | None = None,
) -> Pairs:
    """``triples`` (as ``read_triples`` gives them) as token ids, in their order.

    A pair is dropped and counted if prompt and answer, end token included, exceed ``max_length``
    tokens for either of its answers: cutting them would train on answers without an end, or on
    none at all. So is one whose answers are the same, or whose prompt the chat template refuses;
    ``dropped`` says which.

    Raises ``TrainingError`` where none is left.
    """
    dropped = Dropped() if dropped is None else dropped
    pairs, _ = tokenised(
        triples, tokenizer, max_length=max_length, dropped=dropped, rendering=rendering
    )
    if len(pairs):
        return pairs
    if pairs.dropped_overlong == triples.num_rows:
        raise TrainingError(
            f"each of the {triples.num_rows} pairs is longer than {max_length} tokens: raise "
            "train.max_length (within the model's context) or lower sample.max_tokens"
        )
    raise TrainingError(f"none of the {triples.num_rows} pairs can be trained on: {dropped.said()}")


def tokenised(
    triples: pa.Table,
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_length: int,
    dropped: Dropped,
    rendering: Rendering | None = None,
) -> tuple[Pairs, list[int]]:
    """``token_pairs``, which may be none, and the rows that they are of."""
    end = end_token(tokenizer)
    rendering = rendering or Rendering()
    ids = [*triples["chosen_id"].to_pylist(), *triples["rejected_id"].to_pylist()]
    sampled = rendering.sampled_ids({one for one in ids if one is not None}, tokenizer)
    prompt_of = RenderedPrompts(tokenizer, rendering.template_kwargs)
    prompts: list[TokenIds] = []
    chosen: list[TokenIds] = []
    rejected: list[TokenIds] = []
    sure: list[float] = []
    kept: list[int] = []
    overlong, number = 0, -1
    for batch in triples.to_batches(max_chunksize=_ROWS):
        rows = batch.to_pylist()
        good, bad = (
            sampled.replace(
                answer_ids(tokenizer, (row[side] for row in rows), end, rendering.template_kwargs),
                rows,
                side,
            )
            for side in ("chosen", "rejected")
        )
        for row, one, other in zip(rows, good, bad, strict=True):
            number += 1
            if np.array_equal(one, other):
                dropped.add("same_answer", row["where"], "chosen and rejected are the same answer")
                continue
            try:
                prompt = prompt_of(row["prompt"])
            except RequestRejected as refused:
                dropped.add(refused.reason, row["where"], refused.detail)
                continue
            longest = len(prompt) + max(len(one), len(other))
            if longest > max_length:
                overlong += 1
                dropped.add(OVERLONG, row["where"], f"{longest} tokens are over {max_length}")
                continue
            kept.append(number)
            prompts.append(prompt)
            chosen.append(one)
            rejected.append(other)
            sure.append(row["p_chosen"])
    return Pairs(prompts, chosen, rejected, sure, overlong), kept


def digest_of(column: Sequence[TokenIds]) -> str:
    """Hash of sequences of token ids in their order."""
    lengths = np.array([len(ids) for ids in column], dtype=np.int64)
    flat = np.concatenate(column) if column else np.empty(0, np.int32)
    return content_id(lengths.tobytes().hex(), flat.tobytes().hex())
