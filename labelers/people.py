"""Votes of people among those of labelers: told apart by name, and what they decide."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import pyarrow as pa

HUMAN = "human:"
"""How the ``labeler`` of a person's vote begins; their user name follows."""

PeopleRole = Literal["override", "jury", "calibration"]
"""What votes of people do to decisions: ``override`` decides the pairs they voted on, by their
majority; ``jury`` makes each person a member of the jury; ``calibration`` changes no decision."""


def is_human(labeler: str) -> bool:
    """Whether ``labeler`` is a person."""
    return labeler.startswith(HUMAN)


def without_people(votes: pa.Table) -> pa.Table:
    """The votes of other labelers than people."""
    import pyarrow.compute as pc

    return votes.filter(pc.invert(pc.starts_with(votes["labeler"], HUMAN)))
