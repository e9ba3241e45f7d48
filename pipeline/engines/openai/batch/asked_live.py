"""Whether requests are to be answered at once, also by an engine that asks in batches: a check that
waits for a job would take a day."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_LIVE: ContextVar[bool] = ContextVar("requests are answered at once", default=False)


@contextmanager
def asked_live() -> Iterator[None]:
    """Within it, and in tasks that are begun within it, nobody waits for a job."""
    token = _LIVE.set(True)
    try:
        yield
    finally:
        _LIVE.reset(token)


def is_asked_live() -> bool:
    """Whether that holds here."""
    return _LIVE.get()
