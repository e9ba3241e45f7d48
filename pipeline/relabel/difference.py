"""How two sets of labels of the same answers differ: verdicts, kept pairs, what they cost.

Pairs are matched by their id, and a verdict is about the two answers by their ids, so that nothing
depends on the order of rows or on which answer is called a. What decides is the jury, with the
votes of people as they count in the run; labelers are compared one by one as well.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from prefloop.data.arrays import Ints
from prefloop.labelers.jury.verdict_table import VOTE_COLUMNS, merge_votes, pairs_of, read_votes
from prefloop.labelers.people import is_human
from prefloop.labelers.statistics.agreement import Agreement, clustered_kappa
from prefloop.labelers.statistics.winrate import win_rate
from prefloop.pipeline.config import RunConfig
from prefloop.pipeline.redecide import compare_kept
from prefloop.pipeline.run.context import RoundContext, RunContext
from prefloop.pipeline.run.round_jury import jury_on, with_labels_of
from prefloop.pipeline.run.run_dir import RoundDir, RunDir
from prefloop.pipeline.stages.deciding.decided_blocks import decide_blocks

EXAMPLES = 4
"""Changed pairs that are shown."""
_UNDECIDED = -9
_WORDS = {1: "first", 0: "tie", -1: "second"}
_SPENT_COLUMNS = ["labeler", "preference", "prompt_tokens", "completion_tokens", "cost"]


@dataclass(frozen=True)
class Spent:
    """What the votes of a labeler came to."""

    votes: int
    invalid: int
    ties: int
    prompt_tokens: int
    completion_tokens: int
    """Thoughts included."""
    cost: float


@dataclass(frozen=True)
class Sameness:
    """How far two sets of verdicts (first, second, tie) on the same pairs agree."""

    raw: Agreement
    """Share of equal verdicts."""
    kappa: Agreement
    """Cohen's, each pair counted both ways round, as which answer stands first means nothing."""

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {"raw": self.raw.as_dict(), "kappa": self.kappa.as_dict()}


@dataclass(frozen=True)
class ChangedPair:
    """A pair that was decided otherwise."""

    round: int
    pair_id: str
    prompt: str
    """Its last turn."""
    first: str
    second: str
    """The two answers."""
    before: str
    """first, second or tie."""
    now: str
    p_before: float
    """How sure the jury was of what it decided."""
    p_now: float


@dataclass(frozen=True)
class LabelDifference:
    """Labels of now beside those of before. Intervals are 95 %, prompts being what repeats."""

    pairs: int
    """Decided by both, ties included."""
    same: int
    turned: int
    """The other answer is preferred."""
    now_tie: int
    was_tie: int
    only_before: int
    """Decided before, and not now: no valid vote."""
    only_now: int
    decisions: Sameness
    labelers: dict[tuple[str, str], Sameness]
    """By labeler (or person) of before and labeler of now."""
    kept: dict[str, int]
    """Pairs in the datasets: ``kept_before``, ``kept``, ``added``, ``removed``, ``turned``."""
    spent_before: dict[str, Spent]
    spent: dict[str, Spent]
    """By labeler, people left out."""
    examples: tuple[ChangedPair, ...]

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        counts = ("pairs", "same", "turned", "now_tie", "was_tie", "only_before", "only_now")
        return {
            **{name: getattr(self, name) for name in counts},
            "decisions": self.decisions.as_dict(),
            "labelers": [
                {"before": before, "now": now, **found.as_dict()}
                for (before, now), found in self.labelers.items()
            ],
            "kept": self.kept,
            "spent_before": {name: asdict(one) for name, one in self.spent_before.items()},
            "spent": {name: asdict(one) for name, one in self.spent.items()},
            "examples": [asdict(one) for one in self.examples],
        }


class _Said(NamedTuple):
    """A decision, about the two answers by their ids."""

    verdict: int
    """1: the one with the smaller id, -1: the other, 0: tie, or _UNDECIDED."""
    prompt_id: str
    first: str
    second: str
    p: float


class _Change(NamedTuple):
    """A pair that was decided otherwise, and where its texts lie."""

    pair_id: str
    round: int
    block: int
    was: _Said
    now: _Said


class _Verdicts:
    """Verdicts of two sides on the same pairs, block after block, with the pairs' prompts."""

    def __init__(self) -> None:
        self._parts: list[tuple[Ints, Ints, list[str]]] = []

    def add(self, before: Ints, now: Ints, prompts: list[str]) -> None:
        self._parts.append((before, now, prompts))

    def sameness(self) -> Sameness:
        empty: Ints = np.zeros(0, np.int64)
        before = np.concatenate([empty, *(part[0] for part in self._parts)])
        now = np.concatenate([empty, *(part[1] for part in self._parts)])
        names = [prompt for part in self._parts for prompt in part[2]]
        _, prompts = np.unique(np.array(names, "U"), return_inverse=True)
        if not len(before):
            nothing = Agreement(None, reason="no pair has a verdict of both")
            return Sameness(nothing, nothing)
        share = win_rate((before == now).astype(float), prompts)
        kappa = clustered_kappa(
            np.concatenate([1 - before, 1 + before]),
            np.concatenate([1 - now, 1 + now]),
            np.concatenate([prompts, prompts]),
            labels=3,
        )
        raw = Agreement(share.value, share.low, share.high, share.n)
        return Sameness(raw, replace(kappa, n=len(before)))


def compare_labels(
    run: RunDir, before: RunConfig, directory: RunDir, only: Collection[str]
) -> LabelDifference:
    """The labels in ``directory`` beside those of ``run``, whose config is ``before``. One by one,
    ``only`` these labelers of the directory are compared."""
    decided = _Verdicts()
    labelers: dict[tuple[str, str], _Verdicts] = defaultdict(_Verdicts)
    counts: Counter[str] = Counter()
    kept: Counter[str] = Counter()
    changed: list[_Change] = []
    context = RunContext.of(before, run)
    for folder in directory.rounds():
        labelled = with_labels_of(before, run.round(folder.index))
        for index, old, new in _decisions(context.round(folder.index), labelled, folder):
            kept += compare_kept(old, new)
            was, now = _said(old), _said(new)
            both = [pair for pair in was if pair in now]
            codes = np.array([(was[pair].verdict, now[pair].verdict) for pair in both], np.int64)
            codes = codes.reshape(-1, 2)
            common = (codes != _UNDECIDED).all(axis=1)
            counts += _counts(codes[:, 0], codes[:, 1])
            prompts = [was[pair].prompt_id for pair, use in zip(both, common, strict=True) if use]
            decided.add(codes[common, 0], codes[common, 1], prompts)
            other = common & (codes[:, 0] != codes[:, 1])
            changed += [
                _Change(pair, folder.index, index, was[pair], now[pair])
                for pair, is_other in zip(both, other, strict=True)
                if is_other
            ]
            # Ids are hashes: the smallest are a random draw.
            changed = sorted(changed, key=lambda one: one.pair_id)[:EXAMPLES]
            old_votes = run.round(folder.index).votes.read(index, VOTE_COLUMNS)
            for names, said in _by_labeler(old_votes, folder.votes.read(index, VOTE_COLUMNS)):
                if names[1] in only:
                    labelers[names].add(*said)
    fates = ("kept_before", "kept", "added", "removed", "turned")
    return LabelDifference(
        pairs=counts["pairs"],
        same=counts["same"],
        turned=counts["turned"],
        now_tie=counts["now_tie"],
        was_tie=counts["was_tie"],
        only_before=counts["only_before"],
        only_now=counts["only_now"],
        decisions=decided.sameness(),
        labelers={pair: found.sameness() for pair, found in sorted(labelers.items())},
        kept={fate: kept[fate] for fate in fates},
        spent_before=_spent(run),
        spent=_spent(directory),
        examples=tuple(_example(directory, change) for change in changed),
    )


def _decisions(
    context: RoundContext, before: RunConfig, folder: RoundDir
) -> Iterator[tuple[int, pa.Table, pa.Table]]:
    """Number, decisions of before and decisions of now of each block that both labelled."""
    old = context.folder
    jury = None
    for index in folder.decisions.indices():
        if not old.votes.exists(index):
            continue
        if old.decisions.exists(index):
            found = old.decisions.read(index)
        else:  # no pair was kept, and then no decision stays
            if jury is None:
                jury = jury_on(before.label, old.votes, folder.root / "jury-before.json")
            found, _ = decide_blocks(context, [index], before.label, before.filter, jury)
        yield index, found, folder.decisions.read(index)


def _said(decisions: pa.Table) -> dict[str, _Said]:
    """What was decided, by pair, in the order of the table."""
    columns = ["pair_id", "prompt_id", "chosen_id", "rejected_id", "p_chosen", "labelers"]
    found = {}
    for row in decisions.select(columns).to_pylist():
        first, second = sorted((row["chosen_id"], row["rejected_id"]))
        if row["p_chosen"] > 0.5:
            verdict = 1 if row["chosen_id"] == first else -1
        else:
            verdict = 0 if row["labelers"] else _UNDECIDED
        found[row["pair_id"]] = _Said(verdict, row["prompt_id"], first, second, row["p_chosen"])
    return found


def _counts(was: Ints, now: Ints) -> Counter[str]:
    common = (was != _UNDECIDED) & (now != _UNDECIDED)
    masks = {
        "pairs": common,
        "same": common & (was == now),
        "turned": common & (was * now == -1),
        "now_tie": common & (now == 0) & (was != 0),
        "was_tie": common & (was == 0) & (now != 0),
        "only_before": (was != _UNDECIDED) & (now == _UNDECIDED),
        "only_now": (was == _UNDECIDED) & (now != _UNDECIDED),
    }
    return Counter({name: int(mask.sum()) for name, mask in masks.items()})


def _by_labeler(
    before: pa.Table, now: pa.Table
) -> Iterator[tuple[tuple[str, str], tuple[Ints, Ints, list[str]]]]:
    """Each labeler of before with each of now: their verdicts where both have one, and the
    prompts."""
    both = pa.concat_tables([before, now])
    if not len(both):
        return
    pairs = pairs_of(both)
    prompts = np.array(pairs["prompt_id"].to_pylist())
    old, new = read_votes(before, pairs), read_votes(now, pairs)
    was, said = merge_votes(old, len(pairs)), merge_votes(new, len(pairs))
    for i, name in enumerate(old.labelers):
        for j, new_name in enumerate(new.labelers):
            valid = was.valid[:, i] & said.valid[:, j]
            verdicts = was.verdict[valid, i], said.verdict[valid, j]
            yield (name, new_name), (*verdicts, prompts[valid].tolist())


def _spent(run: RunDir) -> dict[str, Spent]:
    totals: dict[str, Counter[str]] = defaultdict(Counter)
    costs: dict[str, float] = defaultdict(float)
    for folder in run.rounds():
        for votes in folder.votes.iter(_SPENT_COLUMNS):
            for name in pc.unique(votes["labeler"]).to_pylist():
                if is_human(name):
                    continue
                own = votes.filter(pc.equal(votes["labeler"], name))
                said = Counter(own["preference"].to_pylist())
                totals[name] += Counter(
                    votes=len(own),
                    invalid=said["invalid"],
                    ties=said["tie"],
                    prompt_tokens=pc.sum(own["prompt_tokens"]).as_py() or 0,
                    completion_tokens=pc.sum(own["completion_tokens"]).as_py() or 0,
                )
                costs[name] += pc.sum(own["cost"]).as_py() or 0.0
    return {
        name: Spent(
            votes=total["votes"],
            invalid=total["invalid"],
            ties=total["ties"],
            prompt_tokens=total["prompt_tokens"],
            completion_tokens=total["completion_tokens"],
            cost=costs[name],
        )
        for name, total in sorted(totals.items())
    }


def _example(directory: RunDir, change: _Change) -> ChangedPair:
    folder, was, now = directory.round(change.round), change.was, change.now
    candidates = folder.candidates.read(change.block, ["candidate_id", "text"]).to_pylist()
    texts = {row["candidate_id"]: row["text"] for row in candidates}
    prompts = folder.prompts.read(change.block, ["prompt_id", "messages"]).to_pylist()
    [messages] = [row["messages"] for row in prompts if row["prompt_id"] == now.prompt_id]
    return ChangedPair(
        round=change.round,
        pair_id=change.pair_id,
        prompt=messages[-1]["content"],
        first=texts[now.first],
        second=texts[now.second],
        before=_WORDS[was.verdict],
        now=_WORDS[now.verdict],
        p_before=was.p,
        p_now=now.p,
    )
