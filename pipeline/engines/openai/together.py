"""What many requests want at nearly the same time is done at once: one lock, one write."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

T = TypeVar("T")
R = TypeVar("R")

PAUSE_S = 0.008
"""Little beside what a model takes for an answer; a lock and a write cost a tenth of it."""


class Together(Generic[T, R]):
    """Does ``work`` for all that :meth:`do` is asked in one turn of the event loop, or, where it
    did so a moment ago, once :data:`PAUSE_S` is over. Use it from one event loop at a time."""

    def __init__(self, work: Callable[[Sequence[T]], Sequence[R]]) -> None:
        """``work`` gives a result for each of its items, in their order."""
        self._work = work
        self._asked: list[tuple[T, asyncio.Future[R], bool]] = []
        self._next = 0.0

    async def do(self, item: T, *, whatever: bool = False) -> R:
        """What ``work`` gives for ``item``; raises what it raises. Where the task is cancelled
        before the work began, nothing is done for it; with ``whatever``, it is done all the same.
        """
        loop = asyncio.get_running_loop()
        if not self._asked:
            now = loop.time()
            self._next = min(max(now, self._next), now + PAUSE_S)  # another loop, another clock
            loop.call_at(self._next, self.flush)
        future: asyncio.Future[R] = loop.create_future()
        self._asked.append((item, future, whatever))
        return await future

    def flush(self) -> None:
        """Do now what is asked for."""
        asked = [
            (item, future)
            for item, future, whatever in self._asked
            if whatever or not future.done()
        ]
        self._asked = []
        if not asked:
            return
        self._next += PAUSE_S
        try:
            results = self._work([item for item, _ in asked])
        except Exception as error:  # noqa: BLE001  # it is raised where it was asked for
            for _, future in asked:
                if not future.done():
                    future.set_exception(error)
            return
        for (_, future), result in zip(asked, results, strict=True):
            if not future.done():
                future.set_result(result)
