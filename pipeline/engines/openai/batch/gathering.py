"""When have all who are at work handed over their requests? Nobody says so; it is seen.

Requests say of which block they are, and how many it has: no block that has begun is left behind
(unless nothing comes for long), and a while of silence tells that no other begins.
"""

from __future__ import annotations

import asyncio
from collections import Counter

from prefloop.data.protocol import Request

_PATIENCE = 30
"""Silences after which blocks that are not complete are not waited for any more."""


class Gathering:
    """Who has handed over what. Use it from one event loop."""

    def __init__(self, silence_s: float) -> None:
        self._silence_s = silence_s
        self._last = 0.0
        self._came: Counter[str] = Counter()

    def came(self, request: Request) -> None:
        """``request`` was made, whether it will be sent or not."""
        self._last = asyncio.get_running_loop().time()
        if not request.block:
            return
        self._came[request.block] += 1
        if self._came[request.block] >= request.block_size:
            del self._came[request.block]

    def stirred(self) -> None:
        """Something came that is no request: more may follow."""
        self._last = asyncio.get_running_loop().time()

    async def silence(self) -> None:
        """Until nothing more is to be expected."""
        loop = asyncio.get_running_loop()
        while True:
            patience = _PATIENCE if self._came else 1
            left = self._last + patience * self._silence_s - loop.time()
            if left <= 0:
                self._came.clear()
                return
            await asyncio.sleep(min(left, self._silence_s))
            await asyncio.sleep(0)  # what was ready while the loop was held up comes first
