"""Triples from Parquet shards as token ids, ready to train on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from prefloop.data.hashing import content_id
from prefloop.training.errors import TrainingError
from prefloop.training.inputs.tokens import TokenIds, answer_ids, end_token, prompt_ids

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_COLUMNS = ["prompt_id", "prompt", "chosen", "rejected", "p_chosen", "margin"]


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


def read_triples(shards: Sequence[Path]) -> pa.Table:
    """The triples of ``shards`` (Parquet of ``schemas.TRIPLE``) in their order.

    Raises ``TrainingError`` where there are none.
    """
    tables = [_read(shard) for shard in shards]
    table = pa.concat_tables(tables) if tables else pa.table({})
    if table.num_rows == 0:
        raise TrainingError(
            "there are no triples to train on: loosen the filters that dropped all pairs "
            "(prefloop status shows which), or sample more candidates per prompt"
        )
    return table


def add_replay(triples: pa.Table, shards: Sequence[Path], *, share: float, seed: int) -> pa.Table:
    """``triples`` and behind them some of ``shards``, drawn by ``seed``, until these are ``share``
    of all, or used up."""
    earlier = pa.concat_tables([_read(shard) for shard in shards])
    wanted = round(triples.num_rows * share / (1 - share))
    return pa.concat_tables([triples, draw_triples(earlier, wanted, seed)])


def draw_triples(triples: pa.Table, most: int, seed: int) -> pa.Table:
    """At most ``most`` of the rows, drawn by ``seed``, in their order."""
    drawn = np.random.default_rng(seed).permutation(triples.num_rows)[:most]
    return triples.take(np.sort(drawn))


def largest_margin_first(triples: pa.Table) -> pa.Table:
    """The rows in the order of their margins."""
    return triples.take(np.argsort(-triples["margin"].to_numpy(), kind="stable"))


def token_pairs(triples: pa.Table, tokenizer: PreTrainedTokenizerBase, *, max_length: int) -> Pairs:
    """``triples`` as token ids, in their order.

    A pair is dropped and counted if prompt and answer, end token included, exceed ``max_length``
    tokens for either of its answers: cutting them would train on answers without an end, or on
    none at all.

    Raises ``TrainingError`` where none is short enough, or a row's chosen or rejected is not one
    assistant message or both are the same answer.
    """
    end = end_token(tokenizer)
    seen: dict[str, TokenIds] = {}  # many pairs share a prompt
    prompts: list[TokenIds] = []
    chosen: list[TokenIds] = []
    rejected: list[TokenIds] = []
    sure: list[float] = []
    for batch in triples.to_batches(max_chunksize=1024):
        rows = batch.to_pylist()
        good = answer_ids(tokenizer, (answer_of(row, "chosen") for row in rows), end)
        bad = answer_ids(tokenizer, (answer_of(row, "rejected") for row in rows), end)
        for row, one, other in zip(rows, good, bad, strict=True):
            if np.array_equal(one, other):
                raise TrainingError(
                    f"chosen and rejected are the same answer (prompt_id {row['prompt_id']}): "
                    "remove that row"
                )
            prompt = seen.get(row["prompt_id"])
            if prompt is None:
                prompt = seen[row["prompt_id"]] = prompt_ids(tokenizer, row["prompt"])
            if len(prompt) + max(len(one), len(other)) <= max_length:
                prompts.append(prompt)
                chosen.append(one)
                rejected.append(other)
                sure.append(row["p_chosen"])
    if not prompts:
        raise TrainingError(
            f"each of the {triples.num_rows} pairs is longer than {max_length} tokens: raise "
            "train.max_length (within the model's context) or lower sample.max_tokens"
        )
    return Pairs(prompts, chosen, rejected, sure, triples.num_rows - len(prompts))


def _read(shard: Path) -> pa.Table:
    """The columns of a shard that are trained on; without ``p_chosen`` the labels are certain, and
    without ``margin`` all pairs are alike."""
    table = pq.read_table(shard)
    for name in ("p_chosen", "margin"):
        if name not in table.column_names:
            table = table.append_column(name, pa.array(np.ones(len(table))))
    return table.select(_COLUMNS)


def answer_of(row: Mapping[str, Any], column: str) -> str:
    """The text of one assistant message. Raises ``TrainingError`` for anything else."""
    match row[column]:
        case [{"role": "assistant", "content": str(text)}]:
            return text
    raise TrainingError(
        f"{column} of prompt_id {row.get('prompt_id')} is not one assistant message: write it as "
        '[{"role": "assistant", "content": "..."}]'
    )


def digest_of(column: Sequence[TokenIds]) -> str:
    """Hash of sequences of token ids in their order."""
    lengths = np.array([len(ids) for ids in column], dtype=np.int64)
    flat = np.concatenate(column) if column else np.empty(0, np.int32)
    return content_id(lengths.tobytes().hex(), flat.tobytes().hex())
