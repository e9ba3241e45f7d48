"""How much the engines have to do, so that further blocks begin before one of them runs dry.

The answers of a block end at different times, the longest maybe ten times as late as most: an
engine that waits for whole blocks stands half empty meanwhile. So sequences under way are counted.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

AHEAD = 2.0
"""Sequences that an engine is to have, as a multiple of what it works on at once: as many wait, so
that those that end are followed at once, also where all end together."""


@dataclass(eq=False)
class AskingBlock:
    """A block on its way. ``asked``: whether it has asked an engine yet."""

    asked: bool = False


@dataclass
class _Load:
    enough: float
    under_way: int = 0


_ASKER: ContextVar[AskingBlock | None] = ContextVar("block that asks", default=None)


def ask_as(asker: AskingBlock) -> None:
    """Let what this task, and those that it starts, ask of engines count as asked by ``asker``."""
    _ASKER.set(asker)


class EngineLoads:
    """Sequences under way at each engine, and whether there is room for those of another block."""

    def __init__(self) -> None:
        self._loads: dict[Hashable, _Load] = {}
        self._waiting: set[Callable[[], None]] = set()

    @contextmanager
    def carrying(self, engine: Hashable, capacity: int, sequences: int) -> Iterator[None]:
        """Count ``sequences`` as under way at ``engine``, which works on ``capacity`` at once."""
        load = self._loads.setdefault(engine, _Load(0.0))
        load.enough = AHEAD * capacity
        load.under_way += sequences
        if (asker := _ASKER.get()) and not asker.asked:
            asker.asked = True
            self._tell()  # now it is known how much this block asks
        try:
            yield
        finally:
            before = load.under_way
            load.under_way -= sequences
            if before >= load.enough > load.under_way:
                self._tell()

    @property
    def has_room(self) -> bool:
        """Whether somebody is asked, and all could do with more: where one has enough, a further
        block would only wait for it."""
        loads = self._loads.values()
        return any(load.under_way for load in loads) and all(
            load.under_way < load.enough for load in loads
        )

    @contextmanager
    def heard_by(self, listener: Callable[[], None]) -> Iterator[None]:
        """Let ``listener`` be called whenever there may be room."""
        self._waiting.add(listener)
        try:
            yield
        finally:
            self._waiting.discard(listener)

    def _tell(self) -> None:
        for listener in self._waiting:
            listener()
