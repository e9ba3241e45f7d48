"""Who wants to hear of it when a file became there.

What is kept in two places is carried over at the moment it is whole in the first; those who write
files know nothing of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

_LISTENERS: list[Callable[[Path], None]] = []


def committed(path: Path) -> None:
    """The file ``path`` is there, whole. What a listener raises is raised."""
    for listen in tuple(_LISTENERS):
        listen(path)


@contextmanager
def told_of_commits(listen: Callable[[Path], None]) -> Iterator[None]:
    """Let ``listen`` hear of every file that becomes there in this process, in any folder."""
    _LISTENERS.append(listen)
    try:
        yield
    finally:
        _LISTENERS.remove(listen)
