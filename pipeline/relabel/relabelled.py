"""What labelling a run's answers again came to."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from prefloop.pipeline.redecide import Redecided
from prefloop.pipeline.relabel.difference import LabelDifference


@dataclass(frozen=True)
class VotesFrom:
    """Where the votes of a labeler came from."""

    there: int = 0
    """Those that an earlier call had asked for."""
    taken: int = 0
    """Those that the run or another relabelling had."""
    asked: int = 0

    def __add__(self, other: VotesFrom) -> VotesFrom:
        return VotesFrom(
            self.there + other.there, self.taken + other.taken, self.asked + other.asked
        )


@dataclass(frozen=True)
class Relabelled:
    """Other labels of a run's answers."""

    run: Path
    folder: Path
    """A run directory of its own: ``status``, ``report``, ``agreement``, ``audit`` and ``train``
    take it as they take the run."""
    labelers: tuple[str, ...]
    """Those that decided."""
    votes: dict[str, VotesFrom]
    """By labeler."""
    rows: dict[str, int]
    """Of the dataset, by split."""
    difference: LabelDifference
    """From the run's labels of before."""
    adopted: bool
    """Whether these are the run's labels now."""
    kept: Path | None
    """Where the labels of before are kept, if these were adopted."""
    rounds: tuple[Redecided, ...]
    """What adopting them did to the run's dataset."""

    @property
    def dataset(self) -> Path:
        """The folder that ``datasets.load_dataset`` opens."""
        return self.folder / "dataset"

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {
            "run": str(self.run),
            "folder": str(self.folder),
            "dataset": str(self.dataset),
            "rows": self.rows,
            "labelers": list(self.labelers),
            "votes": {name: asdict(one) for name, one in self.votes.items()},
            "difference": self.difference.as_dict(),
            "adopted": self.adopted,
            "kept": None if self.kept is None else str(self.kept),
            "rounds": [asdict(each) for each in self.rounds],
        }
