"""All is not some: a stage in which everything failed ends, and leaves nothing that looks done.

Where some items of a stage fail, they are kept with their reasons and the stage goes on. Where the
first ones all fail, their blocks are kept back until one comes out; if none does, the stage raises
``NothingCameOut`` without having committed any, so that the same command asks again.
"""

from __future__ import annotations

import logging
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable, Collection, Mapping
from dataclasses import dataclass, field

import pyarrow as pa
import pyarrow.compute as pc

from prefloop.data.errors import NothingCameOut
from prefloop.data.shards import ShardFolder
from prefloop.data.utf8 import BLANK, one_line
from prefloop.labelers.decisions.filters import EMPTY_ANSWER
from prefloop.labelers.judges.json_answers import CUT_OFF
from prefloop.labelers.people import without

logger = logging.getLogger(__name__)

ENOUGH = 32
"""So many failures for one reason, with nothing that came out, and the rest is not asked."""
_OF_THE_ITEM = ("context_overflow",)
"""Reasons that lie in an item: many of them say nothing about the next one."""
_REMARKABLE = 0.3
"""Share of failures above which a stage that goes on says so."""
_SHOWN = 400
SAMPLED, GIVEN_ORIGIN = "sampled", "given"
"""Origins of candidates: of an engine, and of data that were there before."""

Commit = Callable[[], Awaitable[object]]
Tally = Mapping[str, Mapping[str, int]]
"""How often each reason was given, by who was asked; the reason "" says that something came."""


@dataclass
class AllOrSome:
    """What came of a stage so far, and its blocks that are kept back.

    ``items`` names what is counted, ``remedy`` what to change. ``came_before``: an earlier process
    got something out of this stage, so that what fails now is some and not all.
    """

    title: str
    items: str
    remedy: str
    came_before: bool = False
    _counts: dict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    _kept_back: list[Commit] = field(default_factory=list)

    async def take(self, block: Tally, commit: Commit) -> None:
        """Count a block, and commit it now or once something came out.

        Raises ``NothingCameOut`` where it is plain that nothing will.
        """
        for name, reasons in block.items():
            self._counts[name].update(reasons)
        if any(map(sum_of, block.values())) and not self._some:
            self._kept_back.append(commit)
            if self._hopeless:
                raise self._nothing()
            return
        await self._commit_kept_back()
        await commit()

    async def close(self) -> None:
        """End the stage: raise ``NothingCameOut`` where all failed, warn where much did."""
        if self._kept_back and not self._some:
            raise self._nothing()
        await self._commit_kept_back()
        for name, reasons in self._counts.items():
            failed = failures_of(reasons)
            if failed.total() > _REMARKABLE * reasons.total():
                who = f" of {one_line(name)}" if name else ""
                logger.warning(
                    "%s: %d of %d %s%s failed, %s", self.title, failed.total(), reasons.total(),
                    self.items, who, commonest(failed),
                )  # fmt: skip

    @property
    def _some(self) -> bool:
        return self.came_before or any(reasons[""] for reasons in self._counts.values())

    @property
    def _failed(self) -> Counter[str]:
        return sum(map(failures_of, self._counts.values()), Counter())

    @property
    def _hopeless(self) -> bool:
        kinds = set(map(_kind, self._failed))
        enough = self._failed.total() >= ENOUGH
        return enough and len(kinds) == 1 and kinds.isdisjoint(_OF_THE_ITEM)

    async def _commit_kept_back(self) -> None:
        while self._some and self._kept_back:
            await self._kept_back.pop(0)()

    def _nothing(self) -> NothingCameOut:
        failed = self._failed
        why = commonest(failed)
        remedy = self.remedy
        if CUT_OFF in why:  # a judge's answer, which is not to be asked of another engine
            who = ", ".join(
                one_line(name)
                for name, reasons in self._counts.items()
                if name and any(CUT_OFF in reason for reason in reasons)
            )
            remedy = f"raise max_tokens of {who or 'the judge'}"
        return NothingCameOut(
            f"{self.title}: nothing came of {failed.total()} {self.items}, {why}: "
            f"{remedy}. None of them is marked done: the same command then asks again"
        )


def commonest(reasons: Mapping[str, int]) -> str:
    """The commonest kind of the reasons, as words of a sentence, by its commonest example."""
    kinds: Counter[str] = Counter()
    for reason, times in reasons.items():
        kinds[_kind(reason)] += times
    [(kind, times)] = kinds.most_common(1)
    examples = Counter({one: n for one, n in reasons.items() if _kind(one) == kind})
    [(example, _)] = examples.most_common(1)
    example = one_line(example)
    cut = example if len(example) <= _SHOWN else example[:_SHOWN] + "..."
    return f"for one reason: {cut}" if len(kinds) == 1 else f"{times} for one reason: {cut}"


def failures_of(reasons: Mapping[str, int]) -> Counter[str]:
    """``reasons`` without what came."""
    return Counter({reason: times for reason, times in reasons.items() if reason})


def sum_of(reasons: Mapping[str, int]) -> int:
    """How much was counted, came or not."""
    return sum(reasons.values())


def _kind(reason: str) -> str:
    return reason.partition(":")[0]


def tally_samples(
    candidates: pa.Table, failed: pa.Table, *, empty_counts: bool = False, origin: str = SAMPLED
) -> Tally:
    """Of a block of samples: prompts with an answer that has text, and why others have none.
    ``origin``: of the answers that count.

    ``empty_counts``: an answer without text is one (a policy that says nothing is measured too).
    """
    answers = candidates.filter(pc.equal(candidates["origin"], origin))
    full = answers if empty_counts else answers.filter(_has_text(answers))
    answered = set(full["prompt_id"].to_pylist())
    reasons = Counter({"": len(answered)})
    empty = {
        row["prompt_id"]: f"{EMPTY_ANSWER}: no text, finish reason {row['finish_reason']!r}"
        for row in answers.select(["prompt_id", "finish_reason"]).to_pylist()
        if row["prompt_id"] not in answered
    }
    reasons.update(empty.values())
    for row in failed.select(["reason", "detail"]).to_pylist():
        reasons[f"{row['reason']}: {row['detail']}"] += 1
    return {"": reasons}


def tally_votes(votes: pa.Table) -> Tally:
    """Of a block of votes, by labeler: valid ones, and why others are not."""
    found: dict[str, Counter[str]] = defaultdict(Counter)
    columns = ["labeler", "preference", "rationale", "completion"]
    for row in votes.select(columns).to_pylist():
        why = row["rationale"] or row["completion"] or "no reason given"
        found[row["labeler"]]["" if row["preference"] != "invalid" else why] += 1
    return found


def tally_notes(votes: ShardFolder) -> Counter[str]:
    """How often each reason for an invalid vote was given."""
    columns = ["labeler", "preference", "rationale", "completion"]
    blocks = [tally_votes(part) for part in votes.iter(columns)]
    return sum((failures_of(one) for block in blocks for one in block.values()), Counter())


def any_valid_vote(folder: ShardFolder, silent: Collection[str] = ()) -> bool:
    """Whether the votes written so far hold a valid one of others than ``silent``."""
    parts = (without(votes, silent) for votes in folder.iter(["labeler", "preference"]))
    return any(
        pc.any(pc.not_equal(votes["preference"], "invalid"), min_count=0).as_py() for votes in parts
    )


def any_text(folder: ShardFolder, origin: str = SAMPLED) -> bool:
    """Whether the candidates written so far hold an answer of ``origin`` with text."""
    return any(
        pc.any(pc.and_(_has_text(part), pc.equal(part["origin"], origin)), min_count=0).as_py()
        for part in folder.iter(["origin", "text"])
    )


def _has_text(candidates: pa.Table) -> pa.ChunkedArray:
    return pc.invert(pc.match_substring_regex(candidates["text"], BLANK))
