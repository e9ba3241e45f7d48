"""How many requests are under way at once."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class Slots:
    """The so-many places of one engine. Use it from one event loop."""

    def __init__(self, number: int) -> None:
        self._number = number
        self._free = asyncio.Semaphore(number)
        self._taking = asyncio.Lock()

    @asynccontextmanager
    async def taken(self, count: int = 1) -> AsyncIterator[None]:
        """``count`` of the requests that may be under way at once, or all of them."""
        if count == 1:
            async with self._free:
                yield
            return
        taken = 0
        try:
            async with self._taking:  # one by one, or two would wait for each other's
                while taken < min(count, self._number):
                    await self._free.acquire()
                    taken += 1
            yield
        finally:
            for _ in range(taken):
                self._free.release()
