"""The pairs of a run, every decision of every round."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from prefloop.data.arrays import Ints
from prefloop.data.errors import InputError
from prefloop.data.shards import ShardFolder
from prefloop.labelers.decisions.lengths import LENGTH_COLUMNS, compared_lengths
from prefloop.labelers.decisions.reasons import UNDECIDED
from prefloop.pipeline.report.excerpts import keyed, rows_with, shown_vote
from prefloop.pipeline.run.run_dir import RoundDir, RunDir
from prefloop.pipeline.stages.write import split_files
from prefloop.pipeline.view.pair_facts import FACTS, KEPT
from prefloop.pipeline.view.pair_texts import Shown, pretty

_COLUMNS = [
    "round", "pair_id", "prompt_id", "kept", "reason", "margin", "agreement", "p_chosen",
    "labelers", *LENGTH_COLUMNS,
]  # fmt: skip
_OF_ANSWER = (
    "tokens", "finish_reason", "origin", "sample_index", "seed", "copies", "logprob",
    "reasoning_tokens",
)  # fmt: skip
_OF_VOTE = ("prompt_tokens", "completion_tokens", "reasoning_tokens", "cost", "finish_reason")


class RunPairs:
    """The decided pairs of a run, as they are when this is made; texts are read when asked for."""

    def __init__(self, run: RunDir) -> None:
        """Raises ``InputError`` where no pair is decided yet, ``StorageError``."""
        self.run = run
        self.name = run.root.resolve().name
        self._blocks: list[tuple[int, int]] = []
        tables = []
        for folder in run.rounds():
            splits = _splits(run, folder.index)
            for part in folder.decisions.indices():
                self._blocks.append((folder.index, part))
                tables.append(_facts(folder, part, splits))
        self._lengths = [len(table) for table in tables]
        self.facts = pa.concat_tables([FACTS.empty_table(), *tables]).combine_chunks()
        if not len(self.facts):
            raise InputError(
                f"{run.root}: has no decided pair to look at: let `prefloop run` label first"
            )

    def read(self, rows: Sequence[int], *, votes: bool = True) -> list[Shown]:
        """See ``BrowsedPairs``. Raises ``InputError`` where the pairs were decided again since."""
        table = self.facts.take(pa.array(rows, pa.int64()))
        wanted = table.select(["round", "part", "pair_id"]).to_pylist()
        blocks: defaultdict[tuple[int, int], list[str]] = defaultdict(list)
        for one in wanted:
            blocks[one["round"], one["part"]].append(one["pair_id"])
        try:
            read = {block: self._block(*block, ids, votes) for block, ids in blocks.items()}
            return [read[one["round"], one["part"]][one["pair_id"]] for one in wanted]
        except KeyError:
            raise InputError(
                f"{self.run.root}: its pairs were decided again meanwhile: give the command again"
            ) from None

    def search(self, text: str) -> Ints:
        """See ``BrowsedPairs``. Reads the texts of the whole run, a block at a time."""
        found, start = [np.empty(0, np.int64)], 0
        for (index, part), length in zip(self._blocks, self._lengths, strict=True):
            ids = _holding(self.run.round(index), part, text)
            here = pc.is_in(self.facts["pair_id"].slice(start, length), ids)
            found.append(start + np.flatnonzero(here.to_numpy()).astype(np.int64))
            start += length
        return np.concatenate(found)

    def _block(
        self, index: int, part: int, pair_ids: list[str], with_votes: bool
    ) -> dict[str, Shown]:
        folder = self.run.round(index)
        decisions = rows_with(folder.decisions, part, "pair_id", pair_ids)
        prompt_ids = [row["prompt_id"] for row in decisions]
        prompts = keyed(rows_with(folder.prompts, part, "prompt_id", prompt_ids), "prompt_id")
        if not with_votes:
            return {
                row["pair_id"]: {"turns": prompts[row["prompt_id"]]["messages"]}
                for row in decisions
            }
        answers = keyed(rows_with(folder.candidates, part, "prompt_id", prompt_ids), "candidate_id")
        votes: defaultdict[str, list[dict[str, Any]]] = defaultdict(list)
        for row in rows_with(folder.votes, part, "pair_id", pair_ids):
            votes[row["pair_id"]].append(row)
        return {
            row["pair_id"]: _pair(row, prompts[row["prompt_id"]], answers, votes[row["pair_id"]])
            for row in decisions
        }


def _facts(folder: RoundDir, part: int, splits: Mapping[str, pa.Array]) -> pa.Table:
    table = folder.decisions.read(part, _COLUMNS)
    chosen, rejected = compared_lengths(table)
    kept = table["kept"]
    split: Any = pa.nulls(len(table), pa.string())
    for name, ids in splits.items():
        split = pc.if_else(pc.and_(kept, pc.is_in(table["prompt_id"], ids)), name, split)
    columns = {
        "round": table["round"],
        "part": pa.array(np.full(len(table), part, np.int32)),
        "row": pa.array(np.arange(len(table))),
        "fate": pc.if_else(kept, KEPT, pc.coalesce(table["reason"], "unnamed")),
        "split": split,
        "chosen_length": pa.array(chosen),
        "rejected_length": pa.array(rejected),
    }
    return pa.table(
        {name: columns[name] if name in columns else table[name] for name in FACTS.names}
    ).cast(FACTS)


def _splits(run: RunDir, index: int) -> dict[str, pa.Array]:
    """Ids of the prompts whose triples a round wrote, by the split of the dataset."""
    found = {}
    for split in ("train", "test"):
        ids = [
            pq.read_table(path, columns=["prompt_id"])["prompt_id"]
            for path in split_files(run, split, index)
        ]
        if ids:
            found[split] = pa.chunked_array([c for one in ids for c in one.chunks], pa.string())
    return {split: pc.unique(ids) for split, ids in found.items()}


def _holding(folder: RoundDir, part: int, text: str) -> pa.Array:
    """Ids of the pairs of a block in whose texts ``text`` stands."""
    prompts = folder.prompts.read(part, ["prompt_id", "messages"])
    messages = prompts["messages"].combine_chunks()
    contents = pc.struct_field(pc.list_flatten(messages), "content")
    of_prompt = pc.list_parent_indices(messages).filter(_has(contents, text))
    prompt_ids = prompts["prompt_id"].combine_chunks().take(of_prompt)
    answers = _with_text(folder.candidates, part, "candidate_id", ("text", "reasoning"), text)
    votes = _with_text(folder.votes, part, "pair_id", ("rationale",), text)
    names = ["pair_id", "prompt_id", "chosen_id", "rejected_id"]
    pairs = folder.decisions.read(part, names)
    mask = pc.or_(pc.is_in(pairs["prompt_id"], prompt_ids), pc.is_in(pairs["pair_id"], votes))
    for side in ("chosen_id", "rejected_id"):
        mask = pc.or_(mask, pc.is_in(pairs[side], answers))
    return pairs["pair_id"].filter(mask).combine_chunks()


def _with_text(
    shards: ShardFolder, part: int, key: str, columns: Sequence[str], text: str
) -> pa.Array:
    table = shards.read(part, [key, *columns])
    mask: Any = pa.array(np.zeros(len(table), bool))
    for name in columns:
        mask = pc.or_(mask, _has(table[name], text))
    return table[key].filter(mask).combine_chunks()


def _has(texts: Any, text: str) -> Any:
    return pc.fill_null(pc.match_substring(texts, text, ignore_case=True), False)


def _pair(
    decision: dict[str, Any],
    prompt: dict[str, Any],
    answers: dict[str, dict[str, Any]],
    votes: list[dict[str, Any]],
) -> Shown:
    return {
        "turns": prompt["messages"],
        "as_given": pretty(prompt["turns"]),
        "tools": pretty(prompt["tools"]),
        "reference": prompt["reference"],
        "source": f"{prompt['source']}:{prompt['row']}",
        "prompt_id": decision["prompt_id"],
        "decided": decision["reason"] not in UNDECIDED,
        "position_consistent": decision["position_consistent"],
        "quality_chosen": decision["quality_chosen"],
        "chosen": _answer(answers[decision["chosen_id"]], decision["score_chosen"]),
        "rejected": _answer(answers[decision["rejected_id"]], decision["score_rejected"]),
        "votes": [_vote(row, decision["chosen_id"]) for row in votes],
    }


def _answer(row: dict[str, Any], score: float) -> Shown:
    return {
        "text": row["text"],
        "thought": row["reasoning"],
        "id": row["candidate_id"],
        "policy": f"{row['policy']}@{row['policy_revision']}",
        "score": score,
        **{name: row[name] for name in _OF_ANSWER},
    }


def _vote(row: dict[str, Any], chosen_id: str) -> Shown:
    told = shown_vote(row, chosen_id)
    scores = row["score_a"], row["score_b"]
    if row["a_id"] != chosen_id:
        scores = scores[::-1]
    return {
        "labeler": told.labeler,
        "first": told.first,
        "preferred": told.preferred,
        "p_chosen": told.p_chosen,
        "scores": scores,
        "rationale": told.rationale,
        "thought": row["reasoning"],
        "raw": row["completion"],
        "choices": pretty(row["choice_logprobs"]),
        **{name: row[name] for name in _OF_VOTE},
    }
