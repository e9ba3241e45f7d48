"""What each tracker is told, in its own words. A round is one run of the tracker; those of one run
of prefloop are a group."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from prefloop.pipeline.config import TrackerName
from prefloop.pipeline.report.redact import redact

_PROJECT = "prefloop"


@dataclass(frozen=True)
class TrackedRun:
    """Which run it is that a tracker hears of."""

    name: str
    """The group of its rounds."""
    id: str
    """The same whenever the run is gone on with."""
    folder: str
    """Where it is kept what was told, and what trackers keep beside the run."""
    config: Mapping[str, Any]
    has_rounds: bool = True
    """False for a training alone, which is told as round 0."""

    @classmethod
    def at(
        cls, root: Path, folder: Path, config: Mapping[str, Any], *, has_rounds: bool = True
    ) -> TrackedRun:
        """What is made in ``root``; ``config`` without the keys that are in it."""
        place = root.resolve()
        known = hashlib.sha256(str(place).encode()).hexdigest()[:16]
        return cls(place.name, known, str(folder.resolve()), redact(config), has_rounds)

    def of_round(self, index: int) -> str:
        """The name of a round, or of a training alone: many of those are called alike."""
        return f"{self.name}-" + (f"round-{index:03d}" if self.has_rounds else self.id[:8])


class Sink(Protocol):
    """One round in a tracker."""

    def log(self, values: Mapping[str, float], step: int | None) -> None:
        """Numbers of a training step, or of the round where there is no step."""

    def report(self, page: Path) -> None:
        """Keep the report, where the tracker keeps files."""

    def close(self) -> None:
        """Nothing more comes."""


def open_sink(tracker: TrackerName, run: TrackedRun, index: int) -> Sink:
    """Begin round ``index`` in a tracker, or go on with it."""
    kinds: dict[str, Any] = {
        "trackio": _Trackio,
        "wandb": _Wandb,
        "tensorboard": _TensorBoard,
    }
    sink: Sink = kinds[tracker](run, index)
    return sink


class _Trackio:
    def __init__(self, run: TrackedRun, index: int) -> None:
        import trackio

        self._run = trackio.init(
            project=os.environ.get("TRACKIO_PROJECT", _PROJECT),
            name=run.of_round(index),
            group=run.name,
            config=dict(run.config),
            resume="allow",
            embed=False,
            auto_log_gpu=False,
            auto_log_cpu=False,
        )

    def log(self, values: Mapping[str, float], step: int | None) -> None:
        self._run.log(dict(values), step=step)

    def report(self, page: Path) -> None:
        self._run.log_artifact(page, name="report", type="report")

    def close(self) -> None:
        self._run.finish()


class _Wandb:
    def __init__(self, run: TrackedRun, index: int) -> None:
        import wandb

        # Without a name of their own, projects of many users would be one.
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", _PROJECT),
            name=run.of_round(index),
            group=run.name,
            id=f"{run.id}-{index:03d}",
            resume="allow",
            config=dict(run.config),
            dir=run.folder,
            settings=wandb.Settings(silent=True, console="off"),
        )
        self._run.define_metric("*", step_metric="train_step")

    def log(self, values: Mapping[str, float], step: int | None) -> None:
        if step is None:
            self._run.summary.update(dict(values))
        else:
            self._run.log({**values, "train_step": step})

    def report(self, page: Path) -> None:
        import wandb

        artifact = wandb.Artifact(f"report-{self._run.id}", type="report")
        artifact.add_file(str(page))
        self._run.log_artifact(artifact)

    def close(self) -> None:
        self._run.finish()


class _TensorBoard:
    def __init__(self, run: TrackedRun, index: int) -> None:
        from tensorboard.summary import Writer

        self._writer = Writer(str(Path(run.folder) / "tensorboard" / run.of_round(index)))

    def log(self, values: Mapping[str, float], step: int | None) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step or 0)

    def report(self, page: Path) -> None:
        """It keeps no files."""

    def close(self) -> None:
        self._writer.close()
