"""A process that tells one tracker of a run: what the run writes to its input, a line each.

A tracker that hangs, prints or dies does so here. What was told is kept in ``NAME.json`` of the
run's folder ``tracking``, so that nothing is told twice, by whichever process.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from prefloop.data.shards import atomic_write_json
from prefloop.pipeline.config import TrackerName
from prefloop.pipeline.tracking.sinks import Sink, TrackedRun, open_sink


class Sender:
    """Hands on what is new."""

    def __init__(
        self, tracker: TrackerName, run: TrackedRun, open_round: Callable[[int], Sink]
    ) -> None:
        self._told_file = Path(run.folder) / f"{tracker}.json"
        self._open_round = open_round
        self._round: int | None = None
        self._sink: Sink | None = None
        self._told: dict[str, Any] = {}
        if self._told_file.exists():
            self._told = json.loads(self._told_file.read_text(encoding="utf-8"))

    def hand_on(self, message: dict[str, Any]) -> None:
        """Tell the tracker of one thing, unless it was told before."""
        index = int(message["round"])
        of_round = self._told.setdefault(str(index), {"step": 0, "summary": False, "report": ""})
        if "step" in message:
            if message["step"] <= of_round["step"]:
                return
            sink = self._of_round(index)
            self._remember(of_round, step=message["step"])
            sink.log(message["values"], message["step"])
        elif "report" in message:
            page = Path(message["report"])
            digest = hashlib.sha256(page.read_bytes()).hexdigest()
            if digest != of_round["report"]:
                sink = self._of_round(index)
                self._remember(of_round, report=digest)
                sink.report(page)
        elif not of_round["summary"]:
            sink = self._of_round(index)
            self._remember(of_round, summary=True)
            sink.log(message["values"], None)

    def close(self) -> None:
        """End the round that is open."""
        if self._sink:
            self._sink.close()
        self._sink, self._round = None, None

    def _remember(self, of_round: dict[str, Any], **told: Any) -> None:
        """Before it is told: rather a point too few, after a kill, than one twice."""
        of_round.update(told)
        atomic_write_json(self._told_file, self._told)

    def _of_round(self, index: int) -> Sink:
        if self._sink is None or self._round != index:
            self.close()
            self._sink, self._round = self._open_round(index), index
        return self._sink


def main(tracker: TrackerName, lines: Iterable[str]) -> None:
    """The first line says which run it is; the others are messages."""
    told = iter(lines)
    run = TrackedRun(**json.loads(next(told)))
    Path(run.folder).mkdir(parents=True, exist_ok=True)
    sender = Sender(tracker, run, lambda index: open_sink(tracker, run, index))
    for line in told:
        sender.hand_on(json.loads(line))
    sender.close()


if __name__ == "__main__":
    # What trackers print belongs to nobody; the one line that is said is the reason of an end.
    answer = os.fdopen(os.dup(1), "w", encoding="utf-8")
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.dup2(nowhere, 2)
    try:
        main(sys.argv[1], sys.stdin)  # type: ignore[arg-type]  # the run gives a name it knows
    except BaseException as error:  # noqa: BLE001  # some trackers end the process
        answer.write(f"{type(error).__name__}: {error}")
        answer.close()
        sys.exit(1)
