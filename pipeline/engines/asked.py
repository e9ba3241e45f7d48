"""Who watches the requests of a piece of work: progress counts them while a block is on its way.

The watcher belongs to the task that sets it and to those that this one starts, so that engines tell
the right one without knowing who asks.
"""

from __future__ import annotations

from contextvars import ContextVar
from typing import Protocol

from prefloop.data.protocol import Request


class Watcher(Protocol):
    """Is told of requests as they come and go."""

    def announced(self, request: Request) -> None:
        """``request`` was made."""
        ...

    def answered(self, request: Request) -> None:
        """``request`` was answered or refused."""
        ...


_WATCHER: ContextVar[Watcher | None] = ContextVar("watcher of requests", default=None)


def watch(watcher: Watcher) -> None:
    """Let ``watcher`` be told of the requests of this task from now on."""
    _WATCHER.set(watcher)


def announce(request: Request) -> None:
    """``request`` was made."""
    if watcher := _WATCHER.get():
        watcher.announced(request)


def answered(request: Request) -> None:
    """``request`` was answered or refused."""
    if watcher := _WATCHER.get():
        watcher.answered(request)
