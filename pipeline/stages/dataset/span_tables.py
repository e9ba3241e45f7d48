"""What lies in some blocks of a round, as the rows of its dataset are made of it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from prefloop.data.arrays import Ints
from prefloop.data.conversation import as_sampled, plain, turns_text
from prefloop.data.schemas import MESSAGES
from prefloop.data.shards import ShardFolder
from prefloop.pipeline.run.run_dir import RoundDir
from prefloop.pipeline.run.spans import spans_of

_DECISION_COLUMNS = [
    "prompt_id", "round", "chosen_id", "rejected_id", "p_chosen", "score_chosen", "score_rejected",
    "margin", "agreement", "chosen_tokens", "rejected_tokens", "labelers", "kept", "reason",
]  # fmt: skip


@dataclass(frozen=True)
class SpanTables:
    """The tables of ``blocks``, each read when it is asked for, and once."""

    folder: RoundDir
    blocks: Sequence[int]
    system_prompt: str | None

    @cached_property
    def candidates(self) -> pa.Table:
        """All candidates (schema CANDIDATE)."""
        return _whole(self._candidates)

    @cached_property
    def blocks_of_candidates(self) -> Ints:
        """The place in ``blocks`` of each candidate's block [candidates]."""
        return np.repeat(np.arange(len(self.blocks)), list(map(len, self._candidates)))

    @cached_property
    def votes(self) -> pa.Table:
        """All votes (schema VOTE)."""
        return _whole([_read(self.folder.votes, index) for index in self.blocks])

    @cached_property
    def decisions(self) -> pa.Table:
        """All decisions, in the columns that rows of a dataset are made of."""
        return _whole(self._decisions)

    @cached_property
    def kept(self) -> list[int]:
        """How many pairs of each block are kept."""
        return [int(pc.sum(part["kept"], min_count=0).as_py()) for part in self._decisions]

    def prompts(self, ids: pa.ChunkedArray) -> pa.Table:
        """The prompts with these ids, one for each, as the policy was shown them: the columns
        ``prompt``, ``prompt_turns`` and ``tools``."""
        return looked_up(ids, self._shown["prompt_id"], self._shown.drop_columns("prompt_id"))

    @cached_property
    def _candidates(self) -> list[pa.Table]:
        return [self.folder.candidates.read(index) for index in self.blocks]

    @cached_property
    def _decisions(self) -> list[pa.Table]:
        shards = self.folder.decisions
        return [_read(shards, index, _DECISION_COLUMNS) for index in self.blocks]

    @cached_property
    def _shown(self) -> pa.Table:
        columns = ["prompt_id", "messages", "turns", "tools"]
        prompts = self.folder.prompts.together(self.blocks, columns)
        if not self.system_prompt:
            return prompts.rename_columns(["prompt_id", "prompt", "prompt_turns", "tools"])
        shown = [as_sampled(row, self.system_prompt) for row in prompts.to_pylist()]
        return pa.table(
            {
                "prompt_id": prompts["prompt_id"],
                "prompt": pa.array(list(map(plain, shown)), MESSAGES),
                "prompt_turns": pa.array(list(map(turns_text, shown)), pa.string()),
                "tools": prompts["tools"],
            }
        )


def span_tables(
    folder: RoundDir, blocks: Sequence[int], system_prompt: str | None
) -> Iterator[SpanTables]:
    """The tables of ``blocks``, of as many together as fit into memory."""
    for span in spans_of(folder, blocks):
        yield SpanTables(folder, span, system_prompt)


def looked_up(ids: pa.ChunkedArray, keys: pa.ChunkedArray, table: pa.Table) -> pa.Table:
    """Of each of ``ids``, the row of ``table`` where ``keys`` have it."""
    return table.take(pc.index_in(ids, value_set=keys.combine_chunks()))


def _read(shards: ShardFolder, index: int, columns: Sequence[str] | None = None) -> pa.Table:
    """Shard ``index``, which is empty where it is not there."""
    if shards.exists(index):
        return shards.read(index, columns)
    return shards.schema.empty_table().select(columns or shards.schema.names)


def _whole(parts: Sequence[pa.Table]) -> pa.Table:
    return pa.concat_tables(parts).combine_chunks()
