"""The trackers of a run: told of every training step and of every round, from beside the run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any, get_args

import pyarrow.compute as pc

from prefloop.data.errors import InputError
from prefloop.data.utf8 import shown
from prefloop.pipeline.config import RunConfig, TrackerName
from prefloop.pipeline.run.run_dir import EVALUATION, TRAINING_CURVES, RoundDir, RunDir
from prefloop.pipeline.tracking.sinks import TrackedRun
from prefloop.pipeline.tracking.teller import Teller, numbers, tellers_of


def require_trackers(names: Sequence[str]) -> tuple[TrackerName, ...]:
    """``names``; ``InputError`` for what is no tracker, and where the library of one is missing."""
    known: tuple[TrackerName, ...] = get_args(TrackerName)
    found = tuple(one for one in known if one in names)
    for name in names:
        if name not in known:
            raise InputError(f"tracking: {shown(name)!r} is none of {', '.join(known)}")
        if find_spec(name) is None:
            raise InputError(
                f"tracking: {name} is not installed: `pip install 'prefloop[{name}]'`, or take it "
                "out of `tracking`"
            )
    return found


class Trackers:
    """What a run tells its trackers; without any, nothing happens."""

    def __init__(self, run: RunDir, tellers: Sequence[Teller]) -> None:
        self._run = run
        self._tellers = tellers

    def step(self, index: int, record: Mapping[str, Any]) -> None:
        """A training step of round ``index``."""
        self._tell({"round": index, "step": int(record["step"]), "values": numbers(record)})

    def round(self, folder: RoundDir) -> None:
        """A round that is over: what its trackers missed of the curves, and its figures."""
        if not self._tellers:
            return
        for step, values in _curves(folder).items():
            self._tell({"round": folder.index, "step": step, "values": values})
        self._tell({"round": folder.index, "values": round_figures(folder)})

    def report(self) -> None:
        """The report, beside the last round."""
        rounds = self._run.rounds()
        if rounds and self._run.report.exists():
            page = str(self._run.report.resolve())
            self._tell({"round": rounds[-1].index, "report": page})

    def _tell(self, message: Mapping[str, Any]) -> None:
        for teller in self._tellers:
            teller.tell(message)


@contextmanager
def trackers_of(config: RunConfig, run: RunDir) -> Iterator[Trackers]:
    """The trackers that ``config`` asks for, each in a process of its own, until the block ends.

    A tracker that fails is one warning; none stops or slows the run.
    """
    of_run = TrackedRun.at(run.root, run.tracking, config.model_dump(mode="json"))
    with tellers_of(config.tracking, of_run) as tellers:
        yield Trackers(run, tellers)


def round_figures(folder: RoundDir) -> dict[str, float]:
    """Counts, agreement, cost and evaluation of a round by name."""
    decisions = folder.decisions.table(["kept", "agreement"])
    kept = decisions.filter(decisions["kept"])
    triples = folder.triples.rows()
    cost = [shards.table(["cost"])["cost"] for shards in (folder.candidates, folder.votes)]
    found: dict[str, Any] = {
        "round/prompts": folder.prompts.rows(),
        "round/candidates": folder.candidates.rows(),
        "round/votes": folder.votes.rows(),
        "round/pairs": len(decisions),
        "round/kept": len(kept),
        "round/triples": triples,
        "round/agreement": pc.mean(kept["agreement"]).as_py(),
        "round/cost": sum(pc.sum(one).as_py() or 0.0 for one in cost),
    }
    if folder.metrics.exists(EVALUATION):
        for row in folder.metrics.read(EVALUATION).to_pylist():
            parts = [row["name"], row["against"], row["labeler"]]
            name = "/".join(["evaluation", *filter(None, parts)])
            found[name] = row["value"]
            for end in ("low", "high"):
                if row[end] is not None:
                    found[f"{name}/{end}"] = row[end]
    return {name: float(value) for name, value in found.items() if value is not None}


def _curves(folder: RoundDir) -> dict[int, dict[str, float]]:
    """The numbers of each training step, in the order of the steps."""
    steps: dict[int, dict[str, float]] = {}
    if folder.metrics.exists(TRAINING_CURVES):
        for row in folder.metrics.read(TRAINING_CURVES).to_pylist():
            steps.setdefault(row["step"], {})[row["name"]] = row["value"]
    return dict(sorted(steps.items()))
