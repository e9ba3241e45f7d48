"""Progress of a long step: a bar with rate, tokens and cost on a terminal, log lines elsewhere."""

from __future__ import annotations

import sys
import time
from types import TracebackType

from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from prefloop.data.utf8 import shown
from prefloop.pipeline.terminal import PlainConsole

_SECONDS_BETWEEN_LINES = 15.0


class StepProgress:
    """Counts items, tokens and cost of one step. Use as a context manager.

    ``total`` may be null where nobody knows it before the end. ``done`` items were finished by an
    earlier process and do not count towards the rate.
    """

    def __init__(
        self, title: str, total: int | None, *, done: int = 0, unit: str = "prompts"
    ) -> None:
        self._title, self._total, self._unit = shown(title), total, unit
        self._done = self._resumed = done
        self._tokens = 0
        self._cost = 0.0
        self._began = self._last_line = time.monotonic()
        self._bar: Progress | None = None

    def __enter__(self) -> StepProgress:
        if sys.stderr.isatty():
            self._bar = Progress(
                TextColumn("{task.description:<22}", markup=False),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[facts]}", markup=False),
                TimeElapsedColumn(),
                TimeRemainingColumn(),
                console=PlainConsole(stderr=True),
            )
            self._task = self._bar.add_task(
                self._title, total=self._total, completed=self._done, facts=""
            )
            self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bar:
            self._bar.stop()
        elif kind is None:
            self._line()

    def advance(self, items: int, *, tokens: int = 0, cost: float = 0.0) -> None:
        """Count finished ``items`` and what they took."""
        self._done += items
        self._tokens += tokens
        self._cost += cost
        if self._bar:
            self._bar.update(self._task, completed=self._done, facts=self._facts())
        elif time.monotonic() - self._last_line >= _SECONDS_BETWEEN_LINES:
            self._line()

    def update(self, done: int, total: int) -> None:
        """Set both counts, for steps whose total is known only once they run."""
        self._total = total
        if self._bar:
            self._bar.update(self._task, total=total)
        self.advance(done - self._done)

    def _facts(self) -> str:
        seconds = max(time.monotonic() - self._began, 1e-9)
        facts = f"{(self._done - self._resumed) / seconds:,.1f} {self._unit}/s"
        if self._tokens:
            facts += f"  {self._tokens:,} tokens ({self._tokens / seconds:,.0f}/s)"
        if self._cost:
            facts += f"  cost {self._cost:,.4f}"
        return facts

    def _line(self) -> None:
        self._last_line = time.monotonic()
        elapsed = self._last_line - self._began
        of_total = "" if self._total is None else f"/{self._total:,}"
        print(
            f"{self._title}: {self._done:,}{of_total} {self._unit} in {elapsed:.1f} s"
            f"  {self._facts()}",
            file=sys.stderr,
            flush=True,
        )
