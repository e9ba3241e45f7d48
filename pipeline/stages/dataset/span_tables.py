"""What lies in some blocks of a round, as the rows of its dataset are made of it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pyarrow as pa

from prefloop.data.arrays import NOWHERE, Bools, Ints, as_arrow, as_numpy, places_in
from prefloop.data.conversations.conversation import as_sampled, plain, turns_text
from prefloop.data.errors import StorageError
from prefloop.data.schemas import MESSAGES
from prefloop.labelers.decisions.candidate_scores import scores_of_rows
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
        return self._candidates[0]

    @cached_property
    def blocks_of_candidates(self) -> Ints:
        """The place in ``blocks`` of each candidate's block [candidates]."""
        return np.repeat(np.arange(len(self.blocks)), self._candidates[1])

    @cached_property
    def votes(self) -> pa.Table:
        """All votes (schema VOTE)."""
        return self.folder.votes.gathered(self.blocks, lenient=True)[0]

    @cached_property
    def decisions(self) -> pa.Table:
        """All decisions, in the columns that rows of a dataset are made of."""
        return self._decisions[0]

    @cached_property
    def kept(self) -> list[int]:
        """How many pairs of each block are kept."""
        table, rows = self._decisions
        before = np.concatenate([[0], np.cumsum(as_numpy(table["kept"]))])
        ends = np.cumsum(rows)
        found: list[int] = (before[ends] - before[ends - rows]).tolist()
        return found

    @cached_property
    def rows_decided(self) -> tuple[Ints, Ints]:
        """The rows of ``candidates`` with the chosen and with the rejected answer of each decision.
        Raises ``StorageError``."""
        return self._rows_of_answers(self.decisions["chosen_id"], self.decisions["rejected_id"])

    @cached_property
    def rows_voted(self) -> tuple[Ints, Ints]:
        """Those with the answers a and b of each vote. Raises ``StorageError``."""
        return self._rows_of_answers(self.votes["a_id"], self.votes["b_id"])

    @cached_property
    def scores(self) -> pa.Table:
        """Columns ``score`` and ``pairs`` of each candidate: mean probability that the jury prefers
        it over its decided pairs, and how many those are; null where it is in none."""
        return scores_of_rows(self.decisions, *self.rows_decided, len(self.candidates))

    @cached_property
    def shown(self) -> pa.Table:
        """The prompts as the policy was shown them: the columns ``prompt_id``, ``prompt``,
        ``prompt_turns`` and ``tools``."""
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

    @cached_property
    def prompt_ids(self) -> list[str]:
        """Of what is ``shown``."""
        found: list[str] = self.shown["prompt_id"].to_pylist()
        return found

    def rows_shown(self, ids: pa.ChunkedArray) -> Ints:
        """The rows of ``shown`` with the prompts ``ids``. Raises ``StorageError``."""
        [rows] = places_in(self.shown["prompt_id"], ids)
        self._require_all(ids, rows, "prompt")
        return rows

    def prompts(self, ids: pa.ChunkedArray) -> pa.Table:
        """The prompts with these ids, one for each: the columns ``prompt``, ``prompt_turns`` and
        ``tools``. Raises ``StorageError``."""
        return self.shown.drop_columns("prompt_id").take(as_arrow(self.rows_shown(ids)))

    @cached_property
    def _candidates(self) -> tuple[pa.Table, list[int]]:
        return self.folder.candidates.gathered(self.blocks)

    @cached_property
    def _decisions(self) -> tuple[pa.Table, list[int]]:
        return self.folder.decisions.gathered(self.blocks, _DECISION_COLUMNS, lenient=True)

    def _rows_of_answers(self, *ids: pa.ChunkedArray) -> tuple[Ints, Ints]:
        first, second = places_in(self.candidates["candidate_id"], *ids)
        for of_side, rows in zip(ids, (first, second), strict=True):
            self._require_all(of_side, rows, "answer")
        return first, second

    def _require_all(self, ids: pa.ChunkedArray, rows: Ints, noun: str) -> None:
        nowhere = np.flatnonzero(rows == NOWHERE)
        if len(nowhere):
            raise StorageError(
                f"{self.folder.root}: the {noun} {ids[nowhere[0]].as_py()} is named in blocks "
                f"{self.blocks[0]} to {self.blocks[-1]}, and is not there: delete what the round "
                "has of these blocks and run the same command again"
            )


def span_tables(
    folder: RoundDir, blocks: Sequence[int], system_prompt: str | None
) -> Iterator[SpanTables]:
    """The tables of ``blocks``, of as many together as fit into memory."""
    for span in spans_of(folder, blocks):
        yield SpanTables(folder, span, system_prompt)


def only(table: pa.Table, rows: Bools) -> pa.Table:
    """Some of the rows of ``table``."""
    return table if rows.all() else table.filter(as_arrow(rows))
