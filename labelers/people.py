"""Votes of people among those of labelers: told apart by name, and what they decide."""

from __future__ import annotations

from collections.abc import Collection
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


def without(votes: pa.Table, labelers: Collection[str]) -> pa.Table:
    """The votes of others than ``labelers``."""
    import pyarrow as pa
    import pyarrow.compute as pc

    if not labelers:
        return votes
    names = pa.array(sorted(labelers), pa.string())
    return votes.filter(pc.invert(pc.is_in(votes["labeler"], names)))


def without_people(votes: pa.Table) -> pa.Table:
    """The votes of other labelers than people."""
    import pyarrow.compute as pc

    return votes.filter(pc.invert(pc.starts_with(votes["labeler"], HUMAN)))


def of_people(votes: pa.Table) -> pa.Table:
    """The votes of people."""
    import pyarrow.compute as pc

    return votes.filter(pc.starts_with(votes["labeler"], HUMAN))
