"""What a labeler is given (pairs), what it gives (votes), and the protocol between.

Invariants every labeler keeps:

* ``label`` returns one vote for each ordered pair that it showed, in the order of the pairs; a
  labeler without an opinion on a pair returns no vote for it.
* A vote is about ``a`` and ``b`` as they stand in the pair, whatever order was shown.
* One row that cannot be judged is an ``invalid`` vote with its reason and takes no other row with
  it. Nothing is guessed for it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from operator import attrgetter
from typing import Any, Literal, Protocol

import pyarrow as pa

from prefloop.data.errors import PrefloopError
from prefloop.data.protocol import Message
from prefloop.data.schemas import VOTE

Preference = Literal["a", "b", "tie", "invalid"]
Order = Literal["ab", "ba", "none"]


class LabelerError(PrefloopError):
    """A labeler cannot be used as configured, or votes do not fit the pairs they are about.

    The message is one line: what is wrong, where, and what to do about it.
    """


@dataclass(frozen=True, slots=True)
class Answer:
    """One candidate as a labeler sees it. ``origin`` is ``"sampled"``, ``"reference"`` or
    ``"given"``.

    ``policy`` is the name of the policy that wrote it; null where that is not told. ``complete``:
    false where it was cut off at its token limit.
    """

    candidate_id: str
    text: str
    tokens: int
    origin: str
    policy: str | None = None
    complete: bool = True


@dataclass(frozen=True, slots=True)
class GivenVerdict:
    """What a row of the data says about two answers that it has."""

    preference: Literal["a", "b", "tie"]
    score_a: float | None
    """Null where the row has no scores of single answers."""
    score_b: float | None
    where: str
    """``source:row``."""


@dataclass(frozen=True, slots=True)
class Pair:
    """Two answers to one conversation. Which is ``a`` says nothing about who wrote it."""

    pair_id: str
    prompt_id: str
    round: int
    messages: tuple[Message, ...]
    reference: str | None
    metadata: Mapping[str, Any]
    a: Answer
    b: Answer
    given: tuple[GivenVerdict, ...] = ()
    """Labels that the data came with. Judges are never shown them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Vote:
    """One labeler's view of one ordered pair: a row of ``prefloop.data.schemas.VOTE``.

    ``p_a`` is the probability that a is preferred to b, ``None`` for hard and invalid votes.
    ``completion`` is the judge's answer as it came, ``finish_reason`` how it ended, and
    ``choice_logprobs`` what the engine gave for its first token, as JSON: together, all that the
    vote was read from. An answer that cannot be read makes an ``"invalid"`` vote, and ``rationale``
    says why. Where there was no answer, ``rationale`` is null and ``completion`` says why.
    """

    pair_id: str
    prompt_id: str
    round: int
    a_id: str
    b_id: str
    labeler: str
    order: Order
    preference: Preference
    p_a: float | None = None
    score_a: float | None = None
    score_b: float | None = None
    rationale: str | None = None
    completion: str | None = None
    finish_reason: str | None = None
    choice_logprobs: str | None = None
    prompt_hash: str | None = None
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cost: float = 0.0
    reasoning: str | None = None
    reasoning_tokens: int | None = None
    criteria: str | None = None


class Labeler(Protocol):
    """Anything that says which answer of a pair is better."""

    @property
    def name(self) -> str:
        """Unique among the labelers of a run; the ``labeler`` of its votes."""
        ...

    async def label(self, pairs: Sequence[Pair], *, block: str) -> list[Vote]:
        """Vote on ``pairs``; see the module's invariants.

        ``block`` names this call for engines that form batches within a block. Raises
        ``prefloop.data.protocol.EngineFailed`` where the engine behind the labeler cannot go on.
        """
        ...


def vote_on(
    pair: Pair, labeler: str, *, order: Order, preference: Preference, **details: Any
) -> Vote:
    """A vote of ``labeler`` on ``pair``; ``details`` are the remaining fields of :class:`Vote`."""
    return Vote(
        pair_id=pair.pair_id,
        prompt_id=pair.prompt_id,
        round=pair.round,
        a_id=pair.a.candidate_id,
        b_id=pair.b.candidate_id,
        labeler=labeler,
        order=order,
        preference=preference,
        **details,
    )


def votes_table(votes: Sequence[Vote]) -> pa.Table:
    """The votes as a table of schema VOTE, in their order."""
    assert [field.name for field in fields(Vote)] == VOTE.names
    columns = [
        pa.array(map(attrgetter(field.name), votes), field.type, size=len(votes)) for field in VOTE
    ]
    return pa.table(columns, schema=VOTE)
