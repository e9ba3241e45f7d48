"""The processes of an engine: those that are there, and how one that died comes back."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from prefloop.data.protocol import Engine, EngineFailed
from prefloop.pipeline.engines.replicas.places import ReplicaPlace
from prefloop.pipeline.engines.replicas.replica import Replica, ReplicaDied, remedy_of
from prefloop.pipeline.engines.replicas.wire import OpeningOrder
from prefloop.pipeline.engines.settings import LocalEngine, TransformersEngine

logger = logging.getLogger(__name__)

PolicyCheck = Callable[[Engine], Awaitable[object]]
"""Raises where an engine does not serve the policy that it was given."""


class Crew:
    """Processes that serve one model. One that dies is started again, with the policy of now."""

    def __init__(
        self, who: str, config: LocalEngine, model: str, revision: str | None = None
    ) -> None:
        """``who`` is what messages call the engine."""
        self.live: list[Replica] = []
        """Those that are there and serve what they should."""
        self.check: PolicyCheck | None = None
        """What a process that came back has to pass, where it was given a policy."""
        self.on_change: Callable[[], None] = lambda: None
        """Hears of it when a process came back, and when none does any more."""
        self.failure: EngineFailed | None = None
        """Why the engine can do nothing any more."""
        self._who, self._config, self._model, self._revision = who, config, model, revision
        self._policy: str | None = None
        self._one_at_a_time = asyncio.Lock()
        self._news = asyncio.Event()
        self._coming: set[asyncio.Task[None]] = set()
        self._awaited = 0
        self._asleep = False
        self._missing: list[ReplicaPlace] = []

    async def start(self, places: Sequence[ReplicaPlace]) -> None:
        """Start a process on each of ``places``. Raises ``EngineFailed``, and then none is left."""
        tasks = [asyncio.ensure_future(self._opened(place)) for place in places]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
        finally:
            for task in tasks:
                task.cancel()  # all are done where none failed
            found = await asyncio.gather(*tasks, return_exceptions=True)
            started = [one for one in found if isinstance(one, Replica)]
            if len(started) < len(places):
                await asyncio.gather(*(replica.aclose() for replica in started))
        for one in found:
            if isinstance(one, BaseException) and not isinstance(one, asyncio.CancelledError):
                raise one
        for replica in started:
            replica.on_death = self._died
            self.live.append(replica)
        for replica in started:
            if replica.over is not None:
                self._died(replica)

    def require_usable(self) -> None:
        """Raise ``EngineFailed`` where nothing can be asked any more."""
        if self.failure is not None:
            raise self.failure

    async def somebody(self) -> None:
        """Wait until a process is there. Raises ``EngineFailed`` where none comes."""
        while True:
            self.require_usable()
            if self.live:
                return
            self._news.clear()
            await self._news.wait()

    async def load_policy(self, path: str) -> None:
        """Let all serve ``path``, those that are coming back too. Raises ``EngineFailed``."""
        await self._change(path, "load_policy")

    async def restart(self, path: str) -> None:
        """The same, by new vLLM engines in the processes."""
        await self._change(path, "restart")

    async def sleep(self) -> None:
        """Free the memory of all GPUs."""
        async with self._one_at_a_time:
            await _all(replica.sleep() for replica in self.live)
            self._asleep = True

    async def wake_up(self) -> None:
        """Serve again; those that died meanwhile are started anew."""
        async with self._one_at_a_time:
            self._asleep = False
            await _all(replica.wake_up() for replica in self.live)
        missing, self._missing = self._missing, []
        await asyncio.gather(*(self._come_back(place) for place in missing))
        self.require_usable()

    async def aclose(self) -> None:
        """End all processes."""
        self.failure = EngineFailed("the engine is closed")
        for task in self._coming:
            task.cancel()
        await asyncio.gather(*self._coming, return_exceptions=True)
        replicas, self.live = self.live, []
        await asyncio.gather(*(replica.aclose() for replica in replicas))
        self._tell()

    async def _opened(self, place: ReplicaPlace) -> Replica:
        config = self._config.model_copy(update={"replicas": 1})
        if isinstance(config, TransformersEngine):
            config = config.model_copy(update={"threads": place.threads})
        level = logging.getLogger("prefloop").getEffectiveLevel()
        order = OpeningOrder(config, self._model, self._revision, place.bound_to, level)
        return await Replica.start(order, place, self._who)

    def _died(self, replica: Replica) -> None:
        if replica in self.live:
            self.live.remove(replica)
        if self.failure is not None:
            return
        again = "it is started again when the others wake" if self._asleep else "starting it again"
        logger.warning(
            "%s (process %d) died (%s): %s", replica.who, replica.pid, replica.over, again
        )
        if self._asleep:
            self._missing.append(replica.place)
            return
        task = asyncio.ensure_future(self._come_back(replica.place))
        self._coming.add(task)
        task.add_done_callback(self._coming.discard)

    async def _come_back(self, place: ReplicaPlace) -> None:
        """Start the process of ``place`` again; where it does not come, the others go on."""
        self._awaited += 1
        try:
            async with self._one_at_a_time:
                replica = await self._serving(place)
            if replica.over is not None:
                raise ReplicaDied(replica.over)
            replica.on_death = self._died
            self.live.append(replica)
        except Exception as error:  # noqa: BLE001 - the check may raise what torch raises
            self._stays_away(place, error, left=len(self.live) + self._awaited - 1)
        finally:
            self._awaited -= 1
        self._tell()

    async def _serving(self, place: ReplicaPlace) -> Replica:
        """A new process that serves the policy of now."""
        replica = await self._opened(place)
        try:
            if self._policy is not None:
                await replica.load_policy(self._policy)
                if self.check is not None:
                    await self.check(replica)
        except BaseException:
            await replica.aclose()
            raise
        return replica

    def _stays_away(self, place: ReplicaPlace, error: Exception, *, left: int) -> None:
        if left:
            logger.warning(
                "%s, %s does not come back (%s): the others go on without it",
                self._who, place, error,
            )  # fmt: skip
            return
        problem, remedy = str(error), remedy_of(error)
        if isinstance(error, EngineFailed) and not isinstance(error, ReplicaDied):
            problem, remedy = error.problem, error.remedy
        self.failure = EngineFailed(
            f"{self._who}: its processes died, and none comes back: {problem}", remedy
        )

    def _tell(self) -> None:
        self._news.set()
        self.on_change()

    async def _change(self, path: str, method: str) -> None:
        async with self._one_at_a_time:
            self.require_usable()
            before, self._policy = self._policy, path
            replicas = list(self.live)
            found = await asyncio.gather(
                *(getattr(replica, method)(path) for replica in replicas), return_exceptions=True
            )
            # Those that died come back with the new policy.
            errors = [
                one
                for one in found
                if isinstance(one, BaseException) and not isinstance(one, ReplicaDied)
            ]
            if not errors:
                return
            if len(errors) == len(replicas):
                self._policy = before
            else:  # some serve the one policy and some the other
                self.failure = EngineFailed(
                    f"{self._who}: not all of its processes took {path}: {errors[0]}"
                )
            raise errors[0]


async def _all(work: Any) -> None:
    """Await all; those that died are looked after elsewhere. Raises the first other error."""
    found = await asyncio.gather(*work, return_exceptions=True)
    for one in found:
        if isinstance(one, BaseException) and not isinstance(one, ReplicaDied):
            raise one
