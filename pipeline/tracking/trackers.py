"""The trackers of a run: told of every training step and of every round, from beside the run."""

from __future__ import annotations

import hashlib
import json
import logging
import queue
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict
from importlib.util import find_spec
from typing import Any

import pyarrow.compute as pc

from prefloop.data.errors import InputError
from prefloop.data.utf8 import one_line
from prefloop.pipeline.config import RunConfig, TrackerName
from prefloop.pipeline.report.redact import hide_environment_secrets, redact
from prefloop.pipeline.run.run_dir import EVALUATION, TRAINING_CURVES, RoundDir, RunDir
from prefloop.pipeline.tracking.sinks import TrackedRun

logger = logging.getLogger(__name__)

PATIENCE_S = 60.0
"""How long a finished run waits for its trackers."""
_NO_NUMBERS = {"step", "epoch", "total_steps"}


def require_trackers(names: Sequence[TrackerName]) -> None:
    """Raise ``InputError`` where the library of a tracker is missing."""
    for name in names:
        if find_spec(name) is None:
            raise InputError(
                f"tracking: {name} is not installed: `pip install 'prefloop[{name}]'`, or take it "
                "out of `tracking`"
            )


class Trackers:
    """What a run tells its trackers; without any, nothing happens."""

    def __init__(self, run: RunDir, tellers: Sequence[_Teller]) -> None:
        self._run = run
        self._tellers = tellers

    def step(self, index: int, record: Mapping[str, Any]) -> None:
        """A training step of round ``index``."""
        values = {name: value for name, value in record.items() if _is_number(name, value)}
        self._tell({"round": index, "step": int(record["step"]), "values": values})

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
    root = run.root.resolve()
    of_run = TrackedRun(
        name=root.name,
        id=hashlib.sha256(str(root).encode()).hexdigest()[:16],
        root=str(root),
        config=redact(config.model_dump(mode="json")),
    )
    tellers = [_Teller(name, of_run) for name in config.tracking]
    try:
        yield Trackers(run, tellers)
    finally:
        for teller in tellers:
            teller.end()


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


def _is_number(name: str, value: Any) -> bool:
    return name not in _NO_NUMBERS and isinstance(value, int | float)


class _Teller:
    """Writes messages to the process of one tracker. A thread does, since a pipe can be full."""

    def __init__(self, tracker: TrackerName, run: TrackedRun) -> None:
        self._tracker = tracker
        self._process = subprocess.Popen(  # noqa: S603  # ours
            [sys.executable, "-m", "prefloop.pipeline.tracking.sender", tracker],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            encoding="utf-8",
            start_new_session=True,  # an interrupted run still tells what it has
        )
        self._messages: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._messages.put(json.dumps(asdict(run)))
        self._thread = threading.Thread(target=self._write, daemon=True)
        self._thread.start()

    def tell(self, message: Mapping[str, Any]) -> None:
        self._messages.put(json.dumps(message))

    def end(self) -> None:
        """Wait for what is still to be told, for a while."""
        self._messages.put(None)
        try:
            self._thread.join(PATIENCE_S)
            self._process.wait(0.1 if self._thread.is_alive() else PATIENCE_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            logger.warning(
                "tracking: %s did not end in %.0f s and was left: the run itself is whole",
                self._tracker,
                PATIENCE_S,
            )

    def _write(self) -> None:
        assert self._process.stdin
        assert self._process.stdout
        try:
            while (line := self._messages.get()) is not None:
                self._process.stdin.write(line + "\n")
                self._process.stdin.flush()
        except OSError:  # it is gone; what it said of that follows
            pass
        with self._process.stdout as answer:
            with suppress(OSError):
                self._process.stdin.close()
            reason = answer.read()
        if reason:
            said = redact(hide_environment_secrets(one_line(reason)[:300]))
            logger.warning(
                "tracking: %s failed and is told no more (%s): the run itself goes on",
                self._tracker,
                said,
            )
