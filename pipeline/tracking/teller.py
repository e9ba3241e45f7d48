"""What tells one tracker, from beside the work that it hears of."""

from __future__ import annotations

import json
import logging
import queue
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict
from typing import Any

from prefloop.data.utf8 import one_line
from prefloop.pipeline.config import TrackerName
from prefloop.pipeline.report.redact import hide_environment_secrets, redact
from prefloop.pipeline.tracking.sinks import TrackedRun

logger = logging.getLogger(__name__)

PATIENCE_S = 60.0
"""How long a finished run waits for its trackers."""
_NO_NUMBERS = {"step", "epoch", "total_steps"}


@contextmanager
def tellers_of(names: Sequence[TrackerName], run: TrackedRun) -> Iterator[list[Teller]]:
    """A teller for each tracker, until the block ends."""
    tellers = [Teller(name, run) for name in names]
    try:
        yield tellers
    finally:
        for teller in tellers:
            teller.end()


def numbers(record: Mapping[str, Any]) -> dict[str, float]:
    """What of a training step's record are figures of it."""
    return {
        name: value
        for name, value in record.items()
        if name not in _NO_NUMBERS and isinstance(value, int | float)
    }


class Teller:
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
