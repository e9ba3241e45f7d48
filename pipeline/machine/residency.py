"""Which models are in memory, and who leaves for whom: one card is enough for several models that
work in turn.

Whoever asks a model something holds its place meanwhile. A model that does not fit beside the
others waits until those that must leave are idle, so a stage with two judges asks the one about all
blocks that it has in flight, and then the other. Answers do not depend on it: engines form their
batches by block.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from prefloop.pipeline.engines.settings import MemoryMode
from prefloop.pipeline.machine.footprint import Footprint

USABLE = 0.95
"""Share of a device's memory that models are let into."""
_GRACE_S = 0.02  # a judge that asks a second time does so at once, and should not lose its place

ModelKey = tuple[str, str]
"""Names of an engine and a model, as the config has them."""


def who_leaves(
    mode: MemoryMode,
    wanted: Footprint,
    inside: Mapping[ModelKey, Footprint],
    capacity: Callable[[str], int],
) -> list[ModelKey]:
    """Those of ``inside`` that make room for ``wanted``, the least recently used first.

    ``inside`` is in the order of use. Nobody leaves for a model that is on other devices, or on
    none. What is too large for an empty device gets it empty: it may still be smaller than thought.
    """
    near = [key for key, one in inside.items() if set(one.devices) & set(wanted.devices)]
    if mode == "keep_open":
        return []
    if mode == "one_at_a_time":
        return near
    leaving: list[ModelKey] = []
    for device in wanted.devices:
        room = USABLE * capacity(device) - wanted.bytes
        staying = [key for key in near if key not in leaving and device in inside[key].devices]
        taken = sum(inside[key].bytes for key in staying)
        for key in staying:
            if taken <= room:
                break
            leaving.append(key)
            taken -= inside[key].bytes
    return leaving


@dataclass
class _Place:
    footprint: Footprint
    leave: Callable[[], Awaitable[None]]
    users: int = 0


@dataclass
class Residency:
    """Lets models in and out. Use it from one event loop at a time."""

    mode: MemoryMode
    capacity: Callable[[str], int]
    _places: dict[ModelKey, _Place] = field(default_factory=dict)
    _changed: asyncio.Condition = field(default_factory=asyncio.Condition)
    _moving: bool = False

    @asynccontextmanager
    async def place(
        self,
        key: ModelKey,
        footprint: Footprint,
        *,
        enter: Callable[[], Awaitable[None]],
        leave: Callable[[], Awaitable[None]],
    ) -> AsyncIterator[None]:
        """Hold the place of ``key``; it enters first where it is not inside, and others leave."""
        async with self._changed:
            await self._changed.wait_for(lambda: key in self._places or not self._moving)
            place = self._places.get(key)
            if place is None:
                self._moving = True  # one move at a time
            else:
                place.users += 1
                self._places[key] = self._places.pop(key)  # the most recently used is the last
        if place is None:
            try:
                place = await self._admit(key, footprint, enter, leave)
            finally:
                self._moving = False
                await self._tell()
        try:
            yield
        finally:
            place.users -= 1
            if not place.users:
                await self._tell()

    def inside(self) -> dict[ModelKey, Footprint]:
        """Who is in memory, in the order of use."""
        return {key: place.footprint for key, place in self._places.items()}

    def forget(self, keys: Collection[ModelKey]) -> None:
        """``keys`` were closed by somebody else."""
        for key in keys:
            self._places.pop(key, None)

    async def _admit(
        self,
        key: ModelKey,
        footprint: Footprint,
        enter: Callable[[], Awaitable[None]],
        leave: Callable[[], Awaitable[None]],
    ) -> _Place:
        for other in who_leaves(self.mode, footprint, self.inside(), self.capacity):
            await self._until_idle(other)
            # Forgotten before it leaves: who asks it from now on waits for its own turn.
            await self._places.pop(other).leave()
        await enter()
        place = self._places[key] = _Place(footprint, leave, users=1)
        return place

    async def _tell(self) -> None:
        async with self._changed:
            self._changed.notify_all()

    async def _until_idle(self, key: ModelKey) -> None:
        while True:
            async with self._changed:
                await self._changed.wait_for(lambda: not self._places[key].users)
            await asyncio.sleep(_GRACE_S)
            if not self._places[key].users:
                return
