"""Waiting for a coroutine from code that is not one, also where a loop runs already (a
notebook)."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

T = TypeVar("T")


def wait_for(work: Callable[[], Awaitable[T]]) -> T:
    """What ``work()`` gives. Within a running event loop it runs in a loop of its own, in another
    thread, and an interrupt of the caller cancels it."""

    async def whole() -> T:
        return await work()

    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(whole())
    from anyio.from_thread import start_blocking_portal

    with start_blocking_portal("asyncio") as portal:
        future = portal.start_task_soon(whole)
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise
