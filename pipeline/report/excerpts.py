"""A few pairs to read: texts are loaded only for the pairs that are shown.

Pairs are drawn by their id. Ids are content hashes, so the smallest ids are a random draw that
neither depends on the order of the shards nor changes when the report is written again.
"""

from __future__ import annotations

import heapq
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from operator import attrgetter
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from prefloop.data.shards import ShardFolder
from prefloop.labelers.decisions.reasons import UNDECIDED
from prefloop.pipeline.run.run_dir import RunDir

_POOL = 600
"""Kept pairs drawn at random, of which the shown ones are taken by margin."""
_THIRDS = ("Low margin", "Middle margin", "High margin")
_TOGETHER = 50_000
"""Decisions that are looked at together."""
LOT_COLUMNS = ["pair_id", "margin", "kept", "reason"]
"""The columns of decisions that lots are drawn from."""
_PER_THIRD = 4
"""Pairs that are shown of each third of the kept ones."""
_CANDIDATE_COLUMNS = [
    "candidate_id", "prompt_id", "text", "tokens", "finish_reason", "origin", "policy",
    "policy_revision", "reasoning", "reasoning_tokens",
]  # fmt: skip
_VOTE_COLUMNS = [
    "pair_id", "a_id", "labeler", "order", "preference", "p_a", "rationale", "reasoning",
    "reasoning_tokens",
]  # fmt: skip


@dataclass(frozen=True)
class ShownThought:
    """What a model thought before it answered or voted."""

    text: str
    tokens: int | None
    """Null where nobody counted them."""

    @classmethod
    def of(cls, row: Mapping[str, Any]) -> ShownThought | None:
        """That of a row of candidates or votes; null where there is none."""
        text = row["reasoning"]
        return cls(text, row["reasoning_tokens"]) if text else None


@dataclass(frozen=True)
class ShownAnswer:
    """One answer of a pair and where it came from."""

    candidate_id: str
    text: str
    tokens: int
    policy: str
    origin: str
    finish_reason: str
    score: float
    thought: ShownThought | None


@dataclass(frozen=True)
class ShownVote:
    """One vote, told about the chosen and the rejected answer."""

    labeler: str
    first: str
    """Which answer the labeler saw first: chosen, rejected, or empty."""
    preferred: str
    """chosen, rejected, tie or invalid."""
    p_chosen: float | None
    rationale: str | None
    thought: ShownThought | None


@dataclass(frozen=True)
class Excerpt:
    """A pair with its prompt, answers and votes."""

    round: int
    group: str
    """Why it is shown: low, middle or high margin, or the filter that dropped it."""
    pair_id: str
    prompt_id: str
    messages: tuple[dict[str, str], ...]
    chosen: ShownAnswer
    rejected: ShownAnswer
    decided: bool
    """False where nothing is preferred: then chosen and rejected are just the two answers."""
    margin: float
    p_chosen: float
    agreement: float
    labelers: tuple[str, ...]
    votes: tuple[ShownVote, ...]


@dataclass(frozen=True, order=True)
class _Pick:
    pair_id: str
    margin: float
    round: int
    part: int
    group: str


def read_excerpts(
    run: RunDir, lots: PairLots | None = None
) -> tuple[list[Excerpt], dict[str, list[Excerpt]]]:
    """Kept pairs (low, middle, high margin) and dropped pairs by the filter that dropped them; by
    ``lots`` that were drawn of all decisions of ``run``, or else are drawn now."""
    if lots is None:
        lots = PairLots()
        for folder in run.rounds():
            for table in with_parts(folder.decisions, LOT_COLUMNS):
                lots.add(table, folder.index)
    kept, dropped = lots.drawn()
    chosen = _by_margin(kept, _PER_THIRD)
    picks = chosen + [pick for picks in dropped.values() for pick in picks]
    loaded = _load(run, picks)
    return (
        [loaded[pick] for pick in chosen if pick in loaded],
        {
            reason: [loaded[pick] for pick in picks if pick in loaded]
            for reason, picks in sorted(dropped.items())
        },
    )


_ORDER = attrgetter(*(field.name for field in fields(_Pick)))


class _Lowest:
    """The picks with the lowest ids among those that it was shown, ``most`` of them."""

    def __init__(self, most: int) -> None:
        self._most = most
        self.picks: list[_Pick] = []
        """In their order."""

    @property
    def limit(self) -> str | None:
        """The highest id that is taken; null while there are too few."""
        return self.picks[-1].pair_id if len(self.picks) == self._most else None

    def add(self, rows: pa.Table, round_index: int, group: str) -> None:
        """Show it more, rows with ``pair_id``, ``margin`` and ``part``."""
        if len(rows) > self._most:
            order = [("pair_id", "ascending")]
            rows = rows.take(pc.select_k_unstable(rows, k=self._most, sort_keys=order))
        self.picks += [
            _Pick(row["pair_id"], row["margin"], round_index, row["part"], group)
            for row in rows.to_pylist()
        ]
        self.picks = sorted(self.picks, key=_ORDER)[: self._most]


class PairLots:
    """The pairs to show, drawn while decisions are read: ``per_reason`` of each reason for which
    pairs were dropped, and of the kept ones a pool."""

    def __init__(self, per_reason: int = 3) -> None:
        self._per_reason = per_reason
        self._found: dict[str, _Lowest] = {}

    def add(self, decisions: pa.Table, round_index: int) -> None:
        """Show them decisions (LOT_COLUMNS, and ``part``) of a round."""
        groups = pc.if_else(decisions["kept"], "", pc.coalesce(decisions["reason"], "unnamed"))
        rows = decisions.select(["pair_id", "margin", "part"]).append_column("group", groups)
        there = pc.unique(groups).to_pylist()
        limits = [self._found[group].limit if group in self._found else None for group in there]
        if limits and None not in limits:  # soon, and then very few rows are left
            highest = max(filter(None, limits))
            rows = rows.filter(pc.less_equal(rows["pair_id"], highest))
        for group in there:
            most = self._per_reason if group else _POOL
            lowest = self._found.setdefault(group, _Lowest(most))
            lowest.add(rows.filter(pc.equal(rows["group"], group)), round_index, group)

    def drawn(self) -> tuple[list[_Pick], dict[str, list[_Pick]]]:
        """The kept ones, and the dropped ones by reason."""
        picks = {group: lowest.picks for group, lowest in self._found.items()}
        return picks.pop("", []), picks


def with_parts(shards: ShardFolder, columns: Sequence[str]) -> Iterator[pa.Table]:
    """Columns of the rows of all shards, many together, with the shard of each as ``part``."""
    parts, tables = [], []
    for part in shards.indices():
        parts.append(part)
        tables.append(shards.read(part, columns))
        if sum(map(len, tables)) >= _TOGETHER:
            yield _numbered(parts, tables)
            parts, tables = [], []
    if tables:
        yield _numbered(parts, tables)


def _numbered(parts: list[int], tables: list[pa.Table]) -> pa.Table:
    of_rows = np.repeat(parts, [len(table) for table in tables])
    return pa.concat_tables(tables).append_column("part", pa.array(of_rows))


def _by_margin(kept: Sequence[_Pick], per_group: int) -> list[_Pick]:
    """``per_group`` picks of each third of ``kept`` by margin, in order of margin."""
    ordered = sorted(kept, key=lambda pick: (pick.margin, pick.pair_id))
    thirds = [len(ordered) * part // 3 for part in range(4)]
    picks = []
    for group, start, stop in zip(_THIRDS, thirds, thirds[1:], strict=False):
        # By id within the third: else its lowest margins would stand for all of it.
        drawn = heapq.nsmallest(per_group, ordered[start:stop])
        drawn.sort(key=lambda pick: (pick.margin, pick.pair_id))
        picks += [replace(pick, group=group) for pick in drawn]
    return picks


def _load(run: RunDir, picks: Iterable[_Pick]) -> dict[_Pick, Excerpt]:
    by_part: dict[tuple[int, int], list[_Pick]] = defaultdict(list)
    for pick in picks:
        by_part[pick.round, pick.part].append(pick)
    loaded: dict[_Pick, Excerpt] = {}
    for (index, part), of_part in sorted(by_part.items()):
        folder = run.round(index)
        pair_ids = [pick.pair_id for pick in of_part]
        decisions = rows_with(folder.decisions, part, "pair_id", pair_ids)
        prompt_ids = [row["prompt_id"] for row in decisions]
        prompts = keyed(rows_with(folder.prompts, part, "prompt_id", prompt_ids), "prompt_id")
        candidates = keyed(
            rows_with(folder.candidates, part, "prompt_id", prompt_ids, _CANDIDATE_COLUMNS),
            "candidate_id",
        )
        votes: dict[str, list[dict[str, Any]]] = defaultdict(list)
        for row in rows_with(folder.votes, part, "pair_id", pair_ids, _VOTE_COLUMNS):
            votes[row["pair_id"]].append(row)
        by_pair = keyed(decisions, "pair_id")
        for pick in of_part:
            row = by_pair[pick.pair_id]
            loaded[pick] = _excerpt(
                pick, row, prompts[row["prompt_id"]], candidates, votes[pick.pair_id]
            )
    return loaded


def rows_with(
    shards: ShardFolder,
    part: int,
    key: str,
    ids: Iterable[str],
    columns: Sequence[str] | None = None,
) -> list[dict[str, Any]]:
    """The rows of a shard that have one of ``ids`` as their ``key``, or some columns of them."""
    table = shards.read(part, columns)
    found: pa.Table = table.filter(pc.is_in(table[key], pa.array(list(ids), pa.string())))
    return list(found.to_pylist())


def keyed(rows: list[dict[str, Any]], key: str) -> dict[str, dict[str, Any]]:
    """``rows`` by their ``key``."""
    return {row[key]: row for row in rows}


def _excerpt(
    pick: _Pick,
    decision: dict[str, Any],
    prompt: dict[str, Any],
    candidates: dict[str, dict[str, Any]],
    votes: list[dict[str, Any]],
) -> Excerpt:
    return Excerpt(
        round=pick.round,
        group=pick.group,
        pair_id=pick.pair_id,
        prompt_id=decision["prompt_id"],
        messages=tuple(prompt["messages"]),
        chosen=_answer(candidates[decision["chosen_id"]], decision["score_chosen"]),
        rejected=_answer(candidates[decision["rejected_id"]], decision["score_rejected"]),
        decided=decision["reason"] not in UNDECIDED,
        margin=decision["margin"],
        p_chosen=decision["p_chosen"],
        agreement=decision["agreement"],
        labelers=tuple(decision["labelers"]),
        votes=tuple(shown_vote(row, decision["chosen_id"]) for row in votes),
    )


def _answer(row: dict[str, Any], score: float) -> ShownAnswer:
    return ShownAnswer(
        candidate_id=row["candidate_id"],
        text=row["text"],
        tokens=row["tokens"],
        policy=f"{row['policy']}@{row['policy_revision']}",
        origin=row["origin"],
        finish_reason=row["finish_reason"],
        score=score,
        thought=ShownThought.of(row),
    )


def shown_vote(row: dict[str, Any], chosen_id: str) -> ShownVote:
    """A row of votes as told about the chosen answer."""
    chosen_is_a = row["a_id"] == chosen_id
    names = {"a": "chosen", "b": "rejected"} if chosen_is_a else {"a": "rejected", "b": "chosen"}
    p_a = row["p_a"]
    return ShownVote(
        labeler=row["labeler"],
        first=names.get(row["order"][0], "") if row["order"] in ("ab", "ba") else "",
        preferred=names.get(row["preference"], row["preference"]),
        p_chosen=p_a if p_a is None or chosen_is_a else 1 - p_a,
        rationale=row["rationale"],
        thought=ShownThought.of(row),
    )
