"""Voting that goes wrong ends before all of it is paid, and its valid votes are kept: the labelling
of a round, the matches of its evaluation, the evaluation of judges.

Some invalid votes are part of every run. Where a labeler gives more than ``label.max_invalid`` of
them, the run ends; the same command, mended or not, asks again about the prompts with an invalid
vote, and about no others.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict, deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from prefloop.data.errors import NothingCameOut
from prefloop.data.hashing import json_hash
from prefloop.data.schemas import VOTE
from prefloop.data.shards import ShardFolder, atomic_write_json, read_json_object
from prefloop.data.strict import fingerprint
from prefloop.labelers.base import Pair
from prefloop.labelers.config import JudgeLabeler, LabelConfig, LabelerConfig
from prefloop.labelers.judges.rubric.asked_criteria import BAD_RUBRIC
from prefloop.labelers.judges.rubric.writing import UNWRITTEN
from prefloop.labelers.people import is_human
from prefloop.pipeline.run.all_or_some import Tally, commonest, failures_of, tally_votes
from prefloop.pipeline.run.answer_key import of_labelers
from prefloop.pipeline.run.manifest import MENDING

WINDOW = 256
"""The last votes of a labeler that are looked at."""
LEAST = 32
"""Fewer of them say nothing yet."""
_CHANCE = 1e-3
"""How often a labeler whose share of invalid votes is just the allowed one may seem worse."""


_GIVEN_BY = "labelers.json"
LABELERS = "label.labelers"
"""Where in the config the labelers of a round stand."""


class TooManyInvalid(NothingCameOut):
    """A labeler's votes are invalid too often for more of them to be paid."""


class VoteFolders(Protocol):
    """Where votes lie, and those that are kept when the voting ends for the others; a round is
    such."""

    @property
    def votes(self) -> ShardFolder: ...

    @property
    def votes_kept(self) -> ShardFolder: ...


@dataclass
class VotesAside:
    """Such folders of votes that are no round's."""

    votes: ShardFolder
    votes_kept: ShardFolder


class Breaker:
    """Looks at the votes of each labeler as they come.

    ``title`` names the stage, ``section`` where in the config its labelers stand. A tie is a valid
    vote.
    """

    def __init__(
        self,
        title: str,
        settings: LabelConfig,
        section: str = LABELERS,
        as_they_are: str = "label.max_invalid: null",
    ) -> None:
        """``as_they_are``: what to set to take all votes as they are."""
        self._title, self._section, self._as_they_are = title, section, as_they_are
        self._most = settings.max_invalid
        self._labelers = {labeler.name: labeler for labeler in settings.labelers}
        self._windows: dict[str, deque[str]] = defaultdict(lambda: deque(maxlen=WINDOW))

    def take(self, votes: pa.Table) -> None:
        """Count a block of votes (schema VOTE). Raises :class:`TooManyInvalid`."""
        self.count(tally_votes(votes))

    def count(self, votes: Tally) -> None:
        """Count a block of votes by its tally. Raises :class:`TooManyInvalid`."""
        if self._most is None:
            return
        for name, reasons in votes.items():
            window = self._windows[name]
            # Spread evenly, as a window may hold a part of a block only.
            window.extend(_spread(Counter(reasons)))
            invalid = failures_of(Counter(window))
            if _is_beyond_chance(invalid.total(), len(window), self._most):
                raise TooManyInvalid(self._said(name, invalid, len(window)))

    def _said(self, name: str, invalid: Counter[str], seen: int) -> str:
        why = commonest(invalid)
        remedy = remedy_for(self._labelers.get(name), why, self._section)
        return (
            f"{self._title}: {invalid.total()} of the last {seen} votes of {name} are invalid, and "
            f"label.max_invalid allows {self._most:g}; {why}: "
            f"{remedy}. The valid votes are kept: the same command "
            f"then asks for the others again ({self._as_they_are} takes them as they are)"
        )


def asks_again(folder: VoteFolders, settings: LabelConfig) -> bool:
    """Whether a labelling ended for its invalid votes, so that judges are to be asked again and not
    looked up: a server may have been mended. Where all votes are taken as they are, they are."""
    return settings.max_invalid is not None and folder.votes_kept.folder.exists()


def set_aside(folder: VoteFolders, settings: LabelConfig) -> None:
    """Take back the votes, and keep what of them is valid, with who gave it."""
    folder.votes_kept.folder.mkdir(parents=True, exist_ok=True)
    atomic_write_json(folder.votes_kept.folder / _GIVEN_BY, _identities(settings))
    for index in folder.votes.indices():
        kept = valid_part(folder.votes.read(index))
        if len(kept):
            folder.votes_kept.replace(index, kept)  # first: no moment without them
        folder.votes.remove([index])


def kept_votes(folder: VoteFolders, index: int, settings: LabelConfig) -> pa.Table:
    """The valid votes on block ``index`` that were kept when a labelling ended; mostly none.

    Those of people stay, and those of labelers that are still the same: where more was changed
    than what makes answers come out, another labeler gave them.
    """
    kept = folder.votes_kept
    if not kept.exists(index):
        return VOTE.empty_table()
    before = read_json_object(kept.folder / _GIVEN_BY, f"delete {kept.folder}, and all is asked")
    now = _identities(settings)
    votes = kept.read(index)
    same = [
        is_human(name) or (name in now and before.get(name) == now[name])
        for name in votes["labeler"].to_pylist()
    ]
    return votes.filter(pa.array(same, pa.bool_()))


def _identities(settings: LabelConfig) -> dict[str, str]:
    """A hash of what makes each labeler that labeler, by its name."""
    harmless = {*MENDING, "weight", "calibration", "decides"}
    files = of_labelers(settings.labelers, calibrated=False)
    return {
        one.name: json_hash(
            [{key: value for key, value in fingerprint(one).items() if key not in harmless},
             files[one.name]]
        )
        for one in settings.labelers
    }  # fmt: skip


def valid_part(votes: pa.Table) -> pa.Table:
    """``votes`` without those of a labeler on prompts on which it gave an invalid one: a labeler
    may be asked about all answers to a prompt together."""
    keys = list(zip(votes["labeler"].to_pylist(), votes["prompt_id"].to_pylist(), strict=True))
    is_invalid = pc.equal(votes["preference"], "invalid").to_pylist()
    spoilt = {
        key
        for key, invalid in zip(keys, is_invalid, strict=True)
        if invalid and not is_human(key[0])
    }
    return votes.filter(pa.array([key not in spoilt for key in keys], pa.bool_()))


def unasked(pairs: Sequence[Pair], kept: pa.Table, labeler: str) -> list[Pair]:
    """Those of ``pairs`` whose prompts have no votes of ``labeler`` among the ``kept`` ones."""
    own = kept.filter(pc.equal(kept["labeler"], labeler))
    known = set(own["prompt_id"].to_pylist())
    return [pair for pair in pairs if pair.prompt_id not in known]


def together(kept: pa.Table, fresh: pa.Table, pairs: Sequence[Pair], order: list[str]) -> pa.Table:
    """``kept`` and ``fresh`` votes as one labelling would have given them: labeler by labeler in
    ``order``, each in the order of ``pairs``, and then those of people."""
    place = {pair.pair_id: at for at, pair in enumerate(pairs)}
    rank = {name: at for at, name in enumerate(order)}
    votes = pa.concat_tables([kept, fresh])
    known = [
        is_human(name) or (name in rank and pair in place)
        for name, pair in zip(
            votes["labeler"].to_pylist(), votes["pair_id"].to_pylist(), strict=True
        )
    ]
    votes = votes.filter(pa.array(known, pa.bool_()))
    places = [place.get(pair, len(place)) for pair in votes["pair_id"].to_pylist()]
    ranks = [rank.get(name, len(rank)) for name in votes["labeler"].to_pylist()]
    return votes.take(pa.array(np.lexsort((np.array(places, np.int64), np.array(ranks, np.int64)))))


def _spread(reasons: Counter[str]) -> list[str]:
    """Each reason as often as it was given, mixed evenly."""
    placed = [
        ((at + 0.5) / times, reason) for reason, times in reasons.items() for at in range(times)
    ]
    return [reason for _, reason in sorted(placed)]


def _is_beyond_chance(invalid: int, seen: int, most: float) -> bool:
    """Whether so many are invalid that a labeler with the share ``most`` of them would hardly ever
    give as many (binomial)."""
    if seen < LEAST or invalid <= most * seen:
        return False
    tail = (
        math.comb(seen, n) * most**n * (1 - most) ** (seen - n) for n in range(invalid, seen + 1)
    )
    return math.fsum(tail) < _CHANCE


def remedy_for(labeler: LabelerConfig | None, why: str, section: str = LABELERS) -> str:
    """The key to change, by the reason that was given most. ``section``: where in the config the
    labeler stands."""
    if not isinstance(labeler, JudgeLabeler):
        return f"change the labeler {labeler.name}" if labeler else "change the labeler"
    key = f"{section}.{labeler.name}"
    if UNWRITTEN in why:
        return (
            f"raise {key}.criteria.max_tokens (or its thought_tokens), or name another model that "
            "writes criteria there"
        )
    if BAD_RUBRIC in why:
        return "mend the rubrics of the prompts, or leave out those that are none"
    if "unfinished thought" in why or "thought" in why:
        return (
            f"raise {key}.thought_tokens, or set {key}.chat_template_kwargs (as "
            "{enable_thinking: false}) so that it does not think"
        )
    if "cut off" in why:
        return f"raise {key}.max_tokens"
    if "about to say something else" in why:
        return (
            f"set {key}.thought_tokens if the model thinks first, or {key}.judge to one that "
            "answers in JSON or text"
        )
    if "log-probabilities" in why:
        return f"set {key}.judge to one that answers in JSON or text"
    if "context_overflow" in why:
        return f"lower {key}.max_tokens, or give engines.{labeler.engine} a longer context"
    if "_server" in why or "unparsable_answer" in why:
        return f"change engines.{labeler.engine}, or mend its server"
    return f"change engines.{labeler.engine} or the judge {labeler.name} ({key})"
