"""Answers that were there before the run, as candidates, as pairs, and as labels on these."""

from __future__ import annotations

import json
import logging
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from itertools import product
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.compute as pc

from prefloop.data.hashing import content_id
from prefloop.data.quarantine import BadRow
from prefloop.data.schemas import GIVEN
from prefloop.data.shards import ShardFolder
from prefloop.labelers.base import GivenVerdict, Pair
from prefloop.labelers.config import LabelConfig
from prefloop.labelers.decisions.pairs import propose_pairs
from prefloop.pipeline.run.all_or_some import GIVEN_ORIGIN
from prefloop.pipeline.run.context import RoundContext
from prefloop.pipeline.run.models import Models
from prefloop.pipeline.run.run_dir import RunDir
from prefloop.pipeline.stages.given_rows import UNKNOWN, read_given_counts

logger = logging.getLogger(__name__)

Row = Mapping[str, Any]
_MOST_READ = 8
"""Shards that are kept in memory: blocks of a round need one or a few each."""


class GivenShards:
    """The given answers of a run, found by their prompts."""

    def __init__(self, run: RunDir) -> None:
        self._folder = run.given
        self._counts = run.given_counts
        self._read: dict[int, dict[str, list[Row]]] = {}

    def of(self, prompt_ids: Iterable[str]) -> Iterator[Row]:
        """Rows of GIVEN for each of ``prompt_ids``, prompt by prompt, in the order of the data."""
        for prompt in prompt_ids:
            shard = self._where.get(prompt)
            if shard is not None:
                yield from self._shard(shard).get(prompt, ())

    @cached_property
    def _where(self) -> dict[str, int]:
        return _shard_of_prompts(self._folder.folder, self._counts.stat().st_mtime_ns)

    def _shard(self, index: int) -> dict[str, list[Row]]:
        if index not in self._read:
            while len(self._read) >= _MOST_READ:
                self._read.pop(next(iter(self._read)))
            rows: dict[str, list[Row]] = defaultdict(list)
            for row in self._folder.read(index).to_pylist():
                rows[row["prompt_id"]].append(row)
            self._read[index] = rows
        return self._read[index]


@lru_cache(maxsize=1)
def _shard_of_prompts(folder: Path, _written: int) -> dict[str, int]:
    """The shard in ``folder`` with each prompt's answers; they are never changed once written."""
    shards, found = ShardFolder(folder, GIVEN), dict[str, int]()
    for index in shards.indices():
        ids = pc.unique(shards.read(index, ["prompt_id"])["prompt_id"]).to_pylist()
        found |= dict.fromkeys(ids, index)
    return found


@dataclass(frozen=True)
class GivenPool:
    """Given answers, ready to become candidates."""

    shards: GivenShards
    count_tokens: Callable[[str], int]
    alone: bool
    """Whether nothing is sampled, so that a prompt without an answer has none."""

    def candidates(
        self, prompts: Sequence[Row], sampled: Sequence[Row], round_index: int
    ) -> tuple[list[dict[str, Any]], list[BadRow]]:
        """The answers to ``prompts`` as rows of CANDIDATE, and the prompts that have none.

        Equal answers to a prompt are one candidate, of the one who is named first; what reads like
        a sampled one is that one.
        """
        there = {(one["prompt_id"], one["text"]): None for one in sampled}
        found: dict[tuple[str, str], dict[str, Any]] = {}
        for row in self.shards.of(one["prompt_id"] for one in prompts):
            key = (row["prompt_id"], row["text"])
            if key in there:
                continue
            if key in found:
                found[key]["copies"] += 1
            else:
                found[key] = self._candidate(row, len(found), round_index)
        answered = {prompt for prompt, _ in (*there, *found)}
        without = [] if not self.alone else [
            BadRow(
                one["source"], one["row"], None, "no_given_answer",
                "sample.from has no answer to it, and sample.n is 0",
                json.dumps(one["messages"], ensure_ascii=False),
            )
            for one in prompts
            if one["prompt_id"] not in answered
        ]  # fmt: skip
        return list(found.values()), without

    def _candidate(self, row: Row, index: int, round_index: int) -> dict[str, Any]:
        thought = row["reasoning"]
        return {
            "candidate_id": content_id(row["prompt_id"], GIVEN_ORIGIN, row["text"]),
            "prompt_id": row["prompt_id"],
            "round": round_index,
            "sample_index": index,
            "text": row["text"],
            "tokens": self.count_tokens(row["text"]),
            "finish_reason": "stop",
            "logprob": None,
            "origin": GIVEN_ORIGIN,
            "policy": row["policy"],
            "policy_revision": UNKNOWN,
            "seed": 0,
            "copies": 1,
            "prompt_tokens": 0,
            "cost": 0.0,
            "reasoning": thought,
            "reasoning_tokens": self.count_tokens(thought) if thought else None,
        }


def open_pool(run: RunDir, models: Models, *, alone: bool) -> GivenPool:
    """The given answers of ``run``; their tokens are counted as the policy would."""
    if models.counts_characters():
        logger.warning(
            "tokens of given answers are counted at four characters a token: name a `policy` "
            "(or an engine's `tokenizer`) to count by its tokenizer"
        )
    single = read_given_counts(run).get("sets_with_one", 0)
    if alone and single:
        logger.warning(
            "sample.from: %s of its rows or lists have one answer only, equal ones being one: "
            "there is nothing in them to compare",
            f"{single:,}",
        )
    return GivenPool(GivenShards(run), models.token_counter(), alone)


def proposed(context: RoundContext, candidates: pa.Table, label: LabelConfig) -> pa.Table:
    """The pairs of ``candidates`` (with ``prompt_id``, ``text`` and ``policy``) that labelers vote
    on: schema PAIR. Answers that were given in different rows are pairs only where
    ``sample.from.pairs`` says so."""
    run, sets = context.run, None
    if run.given_counts.exists() and read_given_counts(run)["pairs"] == "rows":
        sets = _sets(run, candidates)
    return propose_pairs(
        candidates,
        per_prompt=label.pairs_per_prompt,
        seed=context.seed,
        sets=sets,
        across_policies=label.pairs == "across_policies",
    )


def _sets(run: RunDir, candidates: pa.Table) -> dict[str, frozenset[int]]:
    """Which sets each given candidate stands in. Those that were sampled go with all."""
    columns = candidates.select(["candidate_id", "prompt_id", "text", "origin"]).to_pylist()
    ids = {
        (one["prompt_id"], one["text"]): one["candidate_id"]
        for one in columns
        if one["origin"] == GIVEN_ORIGIN
    }
    found: dict[str, set[int]] = defaultdict(set)
    for row in _rows(run, candidates["prompt_id"]):
        candidate = ids.get((row["prompt_id"], row["text"]))
        if candidate is not None:
            found[candidate].add(row["set"])
    return {candidate: frozenset(sets) for candidate, sets in found.items()}


def _rows(run: RunDir, prompt_ids: pa.ChunkedArray) -> Iterator[Row]:
    return GivenShards(run).of(pc.unique(prompt_ids).to_pylist())


def with_given(run: RunDir, pairs: Sequence[Pair], candidates: pa.Table) -> list[Pair]:
    """``pairs`` of ``candidates`` with the labels that the data came with."""
    if not run.given_counts.exists():
        return list(pairs)
    columns = candidates.select(["candidate_id", "prompt_id", "text"]).to_pylist()
    texts = {row["candidate_id"]: (row["prompt_id"], row["text"]) for row in columns}
    given: dict[tuple[str, str], list[Row]] = defaultdict(list)
    for row in GivenShards(run).of(dict.fromkeys(pair.prompt_id for pair in pairs)):
        given[row["prompt_id"], row["text"]].append(row)
    found = []
    for pair in pairs:
        of_a, of_b = (given.get(texts[one.candidate_id], []) for one in (pair.a, pair.b))
        found.append(replace(pair, given=tuple(_verdicts(of_a, of_b))))
    return found


def _verdicts(of_a: Sequence[Row], of_b: Sequence[Row]) -> Iterator[GivenVerdict]:
    """What each set that has both answers says of them."""
    for a, b in product(of_a, of_b):
        if a["set"] != b["set"] or a["rating"] is None or b["rating"] is None:
            continue
        preference: Literal["a", "b", "tie"] = "a" if a["rating"] > b["rating"] else "b"
        if a["rating"] == b["rating"]:
            if not a["ties"]:
                continue
            preference = "tie"
        score_a, score_b = (one["rating"] if one["absolute"] else None for one in (a, b))
        rows = "+".join(map(str, dict.fromkeys([a["row"], b["row"]])))
        yield GivenVerdict(preference, score_a, score_b, f"{a['source']}:{rows}")
