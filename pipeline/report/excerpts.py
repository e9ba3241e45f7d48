"""A few pairs to read: texts are loaded only for the pairs that are shown.

Pairs are drawn by their id. Ids are content hashes, so the smallest ids are a random draw that
neither depends on the order of the shards nor changes when the report is written again.
"""

from __future__ import annotations

import heapq
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from operator import attrgetter
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from prefloop.data.shards import ShardFolder
from prefloop.pipeline.report.tally import UNDECIDED
from prefloop.pipeline.run.run_dir import RunDir

_POOL = 600
"""Kept pairs drawn at random, of which the shown ones are taken by margin."""
_THIRDS = ("Low margin", "Middle margin", "High margin")
_DECISION_COLUMNS = ["pair_id", "margin", "kept", "reason"]


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
    run: RunDir, *, kept_per_group: int = 4, dropped_per_reason: int = 3
) -> tuple[list[Excerpt], dict[str, list[Excerpt]]]:
    """Kept pairs (low, middle, high margin) and dropped pairs by the filter that dropped them."""
    kept, dropped = _draw(run, dropped_per_reason)
    chosen = _by_margin(kept, kept_per_group)
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
_BEYOND = 1000
"""Picks that are gathered before the lowest are looked for."""


class _Lowest:
    """The picks with the lowest ids among those that it was shown, ``most`` of them."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._picks: list[_Pick] = []
        self.limit: str | None = None
        """The id from which on none is taken any more; null while there are too few."""

    def add(self, pick: _Pick) -> None:
        """Show it another one."""
        self._picks.append(pick)
        if len(self._picks) >= self._most + _BEYOND:
            self._picks = self.picks
            self.limit = self._picks[-1].pair_id

    @property
    def picks(self) -> list[_Pick]:
        """In their order."""
        return sorted(self._picks, key=_ORDER)[: self._most]


def _draw(run: RunDir, per_reason: int) -> tuple[list[_Pick], dict[str, list[_Pick]]]:
    found: dict[str, _Lowest] = {}
    for folder in run.rounds():
        for part in folder.decisions.indices():
            table = folder.decisions.read(part, columns=_DECISION_COLUMNS)
            reasons = pc.if_else(table["kept"], "", pc.coalesce(table["reason"], "unnamed"))
            for group in pc.unique(reasons).to_pylist():
                lowest = found.setdefault(group, _Lowest(per_reason if group else _POOL))
                rows = table.filter(pc.equal(reasons, group))
                if lowest.limit is not None:  # soon, very few
                    rows = rows.filter(pc.less(rows["pair_id"], lowest.limit))
                for row in rows.select(["pair_id", "margin"]).to_pylist():
                    lowest.add(_Pick(row["pair_id"], row["margin"], folder.index, part, group))
    kept = found.pop("").picks if "" in found else []
    return kept, {reason: lowest.picks for reason, lowest in found.items()}


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
            rows_with(folder.candidates, part, "prompt_id", prompt_ids), "candidate_id"
        )
        votes: dict[str, list[dict[str, Any]]] = defaultdict(list)
        for row in rows_with(folder.votes, part, "pair_id", pair_ids):
            votes[row["pair_id"]].append(row)
        by_pair = keyed(decisions, "pair_id")
        for pick in of_part:
            row = by_pair[pick.pair_id]
            loaded[pick] = _excerpt(
                pick, row, prompts[row["prompt_id"]], candidates, votes[pick.pair_id]
            )
    return loaded


def rows_with(shards: ShardFolder, part: int, key: str, ids: list[str]) -> list[dict[str, Any]]:
    """The rows of a shard that have one of ``ids`` as their ``key``."""
    table = shards.read(part)
    found: pa.Table = table.filter(pc.is_in(table[key], pa.array(ids, pa.string())))
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
