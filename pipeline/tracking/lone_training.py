"""The trackers of a training outside of a run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from prefloop.pipeline.config import TrackerName
from prefloop.pipeline.tracking.sinks import TrackedRun
from prefloop.pipeline.tracking.teller import Teller, numbers, tellers_of


class TrainingTrackers:
    """What a training tells its trackers; without any, nothing happens."""

    def __init__(self, tellers: Sequence[Teller]) -> None:
        self._tellers = tellers

    def step(self, record: Mapping[str, Any]) -> None:
        """A step that was made."""
        for teller in self._tellers:
            teller.tell({"round": 0, "step": int(record["step"]), "values": numbers(record)})

    def end(self, history: Sequence[Mapping[str, Any]], figures: Mapping[str, float]) -> None:
        """The training is over: what trackers missed of its steps, and its figures."""
        for record in history:
            self.step(record)
        for teller in self._tellers:
            teller.tell({"round": 0, "values": dict(figures)})


@contextmanager
def trackers_of_training(
    names: Sequence[TrackerName], out: Path, settings: Mapping[str, Any]
) -> Iterator[TrainingTrackers]:
    """The trackers ``names`` of the training that makes ``out``, until the block ends.

    What was told is kept beside it, in ``OUT-tracking``: ``out`` appears when it is whole.
    """
    folder = out.resolve().parent / f"{out.resolve().name}-tracking"
    of_run = TrackedRun.at(out, folder, settings, has_rounds=False)
    with tellers_of(names, of_run) as tellers:
        yield TrainingTrackers(tellers)
