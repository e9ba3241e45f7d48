"""Progress of a long step: a bar with rate, tokens and cost on a terminal, log lines elsewhere."""

from __future__ import annotations

import logging
import sys
import threading
import time
from contextvars import ContextVar
from dataclasses import dataclass, field
from types import TracebackType

from rich.progress import (
    BarColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from prefloop.data.protocol import Request
from prefloop.data.utf8 import shown
from prefloop.pipeline.engines.asked import watch
from prefloop.pipeline.terminal import PlainConsole

logger = logging.getLogger(__name__)

_SECONDS_BETWEEN_LINES = 15.0
FIRST_LOOK_S = 60.0
"""Seconds into a step after which its length is known well enough to say."""
FIRST_LINE_S = 1.0
"""Seconds into a step after which it is named where nothing of it is done yet."""
BURST_S = 1.0
"""Seconds within which all answers of a batch have come: an engine gives them at once."""
LONG_S = 3600.0
"""A step that will take longer says so."""


def remaining_seconds(done: float, total: float | None, elapsed: float) -> float | None:
    """Seconds until ``total``, where ``done`` took ``elapsed``; null where nobody can know."""
    if total is None or done <= 0 or elapsed <= 0:
        return None
    return max(total - done, 0.0) * elapsed / done


def said_of_long(done: float, total: float | None, elapsed: float) -> str | None:
    """What to say of a step that will take hours; null for others, and before a minute is over."""
    left = remaining_seconds(done, total, elapsed)
    if left is None or elapsed < FIRST_LOOK_S or left < LONG_S:
        return None
    return (
        f"about {left / 3600:.1f} h to go at the speed of the first {elapsed:.0f} s; it can be "
        "stopped and resumed at any time"
    )


@dataclass(eq=False)
class _Block:
    """A block of items on its way: the requests that were announced for it, and those answered."""

    items: int
    step: StepProgress
    announced: dict[str, int] = field(default_factory=dict)
    single: int = 0
    done: int = 0

    def announced_one(self, request: Request) -> None:
        if request.block:
            self.announced[request.block] = request.block_size
        else:
            self.single += 1

    @property
    def share(self) -> float:
        """Of its requests that are answered; below 1, as the block itself is not done."""
        wanted = max(sum(self.announced.values()) + self.single, self.done + 1)
        return self.done / wanted


class _Watcher:
    """Tells a step's progress of the requests of one of its blocks."""

    def __init__(self, block: _Block) -> None:
        self._block = block

    def announced(self, request: Request) -> None:
        """See ``prefloop.pipeline.engines.asked.Watcher``."""
        self._block.announced_one(request)

    def answered(self, request: Request) -> None:  # noqa: ARG002
        """See ``prefloop.pipeline.engines.asked.Watcher``."""
        self._block.done += 1
        self._block.step.moved()


_BLOCK: ContextVar[_Block | None] = ContextVar("block of a step", default=None)


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
        self._requests = 0
        self._cost = 0.0
        self._on_the_way: list[_Block] = []
        self._began = self._last_line = time.monotonic()
        self._bar: Progress | None = None
        self._begins = threading.Timer(FIRST_LINE_S, self._name_it)
        self._begins.daemon = True
        self._looks: threading.Timer | None = None

    def __enter__(self) -> StepProgress:
        if sys.stderr.isatty():
            self._bar = Progress(
                TextColumn("{task.description:<22}", markup=False),
                BarColumn(),
                TextColumn("{task.fields[count]}"),
                TextColumn("{task.fields[facts]}", markup=False),
                TimeElapsedColumn(),
                TimeRemainingColumn(),
                console=PlainConsole(stderr=True),
            )
            self._task = self._bar.add_task(
                self._title, total=self._total, completed=self._done, count=self._count(), facts=""
            )
            self._bar.start()
        else:
            self._begins.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._looks:
            self._looks.cancel()
        if self._bar:
            self._bar.stop()
            return
        self._begins.cancel()
        if kind is None:
            self._line()

    def begin(self, items: int) -> None:
        """A block of ``items`` begins in this task: its requests count until ``advance`` says in
        the same task that it is done."""
        block = _Block(items, self)
        self._on_the_way.append(block)
        _BLOCK.set(block)
        watch(_Watcher(block))

    def advance(self, items: int, *, tokens: int = 0, cost: float = 0.0) -> None:
        """Count finished ``items`` and what they took."""
        block = _BLOCK.get()
        if block in self._on_the_way:
            self._on_the_way.remove(block)
        self._done += items
        self._tokens += tokens
        self._cost += cost
        self._show()

    def moved(self) -> None:
        """A request of a block was answered."""
        self._requests += 1
        self._show()

    @property
    def completed(self) -> float:
        """Items that are done, those on the way counted by the share of their requests."""
        return self._done + sum(block.items * block.share for block in self._on_the_way)

    def _show(self) -> None:
        now = time.monotonic()
        self._look_once(now - self._began)
        if self._bar:
            self._bar.update(
                self._task, completed=self.completed, count=self._count(), facts=self._facts()
            )
        elif now - self._last_line >= _SECONDS_BETWEEN_LINES:
            self._line()

    def _look_once(self, elapsed: float) -> None:
        """Look how long it will take, when the answers that are coming now are all there."""
        if self._looks or elapsed < FIRST_LOOK_S or self.completed <= self._resumed:
            return
        self._looks = threading.Timer(BURST_S, self._look)
        self._looks.daemon = True
        self._looks.start()

    def _look(self) -> None:
        if self._total is None:
            return
        elapsed = time.monotonic() - self._began
        left = self._total - self._resumed
        if said := said_of_long(self.completed - self._resumed, left, elapsed):
            logger.warning("%s: %s", self._title, said)

    def update(self, done: int, total: int) -> None:
        """Set both counts, for steps whose total is known only once they run."""
        self._total = total
        if self._bar:
            self._bar.update(self._task, total=total)
        self.advance(done - self._done)

    def _count(self) -> str:
        of_total = "" if self._total is None else f"/{self._total:,}"
        return f"{int(self.completed):,}{of_total}"

    def _facts(self) -> str:
        seconds = max(time.monotonic() - self._began, 1e-9)
        facts = f"{(self.completed - self._resumed) / seconds:,.1f} {self._unit}/s"
        if self._requests:
            facts += f"  {self._requests:,} requests"
        if self._tokens:
            facts += f"  {self._tokens:,} tokens ({self._tokens / seconds:,.0f}/s)"
        if self._cost:
            facts += f"  cost {self._cost:,.4f}"
        return facts

    def _name_it(self) -> None:
        """Say which step is at work: its first block may take long."""
        print(f"{self._title}: {self._count()} {self._unit} ...", file=sys.stderr, flush=True)

    def _line(self) -> None:
        self._begins.cancel()
        self._last_line = time.monotonic()
        elapsed = self._last_line - self._began
        print(
            f"{self._title}: {self._count()} {self._unit} in {elapsed:.1f} s  {self._facts()}",
            file=sys.stderr,
            flush=True,
        )
