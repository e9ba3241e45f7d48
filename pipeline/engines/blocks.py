"""Collects requests until their block is complete.

Invariant: what is released together is a block (or, after an idle wait, what is there of it), so
the batches cut from it never depend on which other requests happen to be in flight.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass, field

from prefloop.data.protocol import Completion, Request

logger = logging.getLogger(__name__)


@dataclass
class Pending:
    """A request that waits for its completions, with its prompt as token ids."""

    request: Request
    prompt: tuple[int, ...]
    done: asyncio.Future[list[Completion]]


@dataclass
class _Block:
    arrived: int = 0
    pending: list[Pending] = field(default_factory=list)


class BlockQueue:
    """Hands over each block once all of its requests have arrived.

    A block that stays incomplete (its caller keeps fewer requests in flight than it announced) is
    handed over after ``wait_s`` seconds without any arrival while ``is_idle()``, with a warning:
    a hang would be worse than batches that a resumed run may not repeat.
    """

    def __init__(
        self, release: Callable[[list[Pending]], None], is_idle: Callable[[], bool], wait_s: float
    ) -> None:
        self._release = release
        self._is_idle = is_idle
        self._wait_s = wait_s
        self._blocks: dict[str, _Block] = {}
        self._timer: asyncio.TimerHandle | None = None

    def arrive(self, request: Request, pending: Pending | None) -> None:
        """Count ``request`` as arrived; ``pending`` is None if it was rejected."""
        if not request.block:
            if pending is not None:
                self._release([pending])
            return
        block = self._blocks.setdefault(request.block, _Block())
        block.arrived += 1
        if pending is not None:
            block.pending.append(pending)
        if block.arrived >= request.block_size:
            del self._blocks[request.block]
            if block.pending:
                self._release(block.pending)
        self._restart_timer()

    def close(self) -> list[Pending]:
        """Forget everything that waits, and return it."""
        if self._timer is not None:
            self._timer.cancel()
        left = [pending for block in self._blocks.values() for pending in block.pending]
        self._blocks.clear()
        return left

    def _restart_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = None
        if self._blocks:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(self._wait_s, self._release_incomplete)

    def _release_incomplete(self) -> None:
        if self._is_idle():
            for name, block in self._blocks.items():
                logger.warning(
                    "block %s: only %d of its requests came in %g s; computing those",
                    name, block.arrived, self._wait_s,
                )  # fmt: skip
                if block.pending:
                    self._release(block.pending)
            self._blocks.clear()
        self._restart_timer()
