"""Engines of several processes: one queue before them, and answers in the order in which they come.

What is asked together goes to one process. transformers computes a block in batches that are formed
within it, so the block goes there whole and is asked again whole: the same block gives the same
bits, whoever computes it. vLLM keeps what the requests of a block share.
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from prefloop.data.protocol import Completion, EngineFailed, Request, RequestRejected
from prefloop.pipeline.engines.blocks import BlockQueue, Pending
from prefloop.pipeline.engines.replicas.crew import Crew, PolicyCheck
from prefloop.pipeline.engines.replicas.places import places_on, usable_cores, visible_gpus
from prefloop.pipeline.engines.replicas.replica import Replica, ReplicaDied, remedy_of
from prefloop.pipeline.engines.settings import LocalEngine, TransformersEngine
from prefloop.training.inputs.tokens import TokenIds

if TYPE_CHECKING:
    from prefloop.training.policy.logprobs import Scores

ATTEMPTS = 3
"""How often a block is asked, where each time the process dies that has it."""


async def start_replicas(
    config: LocalEngine, model: str, *, revision: str | None, who: str
) -> ReplicatedEngine:
    """The engine of ``config`` in as many processes as it says. ``who`` is what messages call it.

    Raises ``EngineFailed``.
    """
    gpus = await asyncio.to_thread(visible_gpus)
    crew = Crew(who, config, model, revision)
    await crew.start(places_on(config, gpus=gpus, cores=usable_cores()))
    if isinstance(config, TransformersEngine):
        return ReplicatedTransformers(crew, config.block_wait_s)
    return ReplicatedVllm(crew)


class ReplicatedEngine(ABC):
    """What engines of several processes have in common. Use them from one event loop."""

    def __init__(self, crew: Crew) -> None:
        self._crew = crew
        self._facts = crew.live[0].facts
        self._loop = asyncio.get_running_loop()
        crew.on_change = self._changed

    @property
    def supports_json_schema(self) -> bool:
        """Whether answers can be constrained."""
        return bool(self._facts["supports_json_schema"])

    @property
    def is_transformers(self) -> bool:
        """Whether its weights are read as those of any comparison would be."""
        return bool(self._facts["is_transformers"])

    @property
    def replicas(self) -> tuple[Replica, ...]:
        """The processes that are there, each an engine."""
        return tuple(self._crew.live)

    def check_by(self, check: PolicyCheck) -> None:
        """Let a process that comes back serve nobody before ``check`` passes it."""
        self._crew.check = check

    @abstractmethod
    async def generate(self, request: Request) -> list[Completion]:
        """See ``prefloop.data.protocol.Engine``."""

    async def load_policy(self, path: str) -> None:
        """See ``prefloop.data.protocol.Engine``. All processes serve it, or the engine fails."""
        await self._crew.load_policy(path)

    async def aclose(self) -> None:
        """See ``prefloop.data.protocol.Engine``."""
        await self._crew.aclose()

    def _changed(self) -> None:  # noqa: B027 - most need not know
        """A process came back, or none does any more."""


@dataclass(eq=False)
class _Parcel:
    """Requests that are computed together."""

    block: list[Pending]
    deaths: int = 0

    @property
    def is_awaited(self) -> bool:
        return any(not pending.done.done() for pending in self.block)

    def fail(self, error: EngineFailed) -> None:
        for pending in self.block:
            if not pending.done.done():
                pending.done.set_exception(error)


class ReplicatedTransformers(ReplicatedEngine):
    """Processes that each compute one block at a time; the next one is for whoever is free."""

    def __init__(self, crew: Crew, block_wait_s: float) -> None:
        super().__init__(crew)
        self._queue: deque[_Parcel] = deque()
        self._busy: dict[Replica, _Parcel] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._blocks = BlockQueue(self._release, self._is_idle, block_wait_s)

    async def generate(self, request: Request) -> list[Completion]:
        """See ``prefloop.data.protocol.Engine``. Waits until the request's block is complete."""
        self._crew.require_usable()
        pending = Pending(request, (), self._loop.create_future())
        self._blocks.arrive(request, pending)
        return await pending.done

    def logprobs(
        self,
        prompts: Sequence[TokenIds],
        answers: Sequence[TokenIds],
        share: tuple[int, int] = (0, 1),
    ) -> Scores:
        """See ``HfEngine.logprobs``, whose bits come out. Call it from any thread but that of the
        engine's event loop."""
        work = self._logprobs(prompts, answers, share)
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    async def aclose(self) -> None:
        """See ``prefloop.data.protocol.Engine``."""
        waiting = self._blocks.close()
        await super().aclose()
        _Parcel(waiting).fail(EngineFailed("the engine was closed while requests waited"))
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _is_idle(self) -> bool:
        return not self._busy and not self._queue

    def _release(self, block: list[Pending]) -> None:
        self._queue.append(_Parcel(block))
        self._changed()

    def _changed(self) -> None:
        """Give blocks to those who are free."""
        if self._crew.failure is not None:
            for parcel in self._queue:
                parcel.fail(self._crew.failure)
            self._queue.clear()
        for replica in self._crew.live:
            if replica in self._busy:
                continue
            while self._queue and not self._queue[0].is_awaited:
                self._queue.popleft()
            if not self._queue:
                return
            parcel = self._busy[replica] = self._queue.popleft()
            task = asyncio.ensure_future(self._compute(replica, parcel))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _compute(self, replica: Replica, parcel: _Parcel) -> None:
        size = len(parcel.block)
        found = await asyncio.gather(
            *(_ask(replica, pending, size) for pending in parcel.block), return_exceptions=True
        )
        del self._busy[replica]
        deaths = [one for one in found if isinstance(one, ReplicaDied)]
        if deaths:
            parcel.deaths += 1
            if parcel.deaths < ATTEMPTS:
                self._queue.appendleft(parcel)
            else:
                parcel.fail(_poisonous(parcel.block[0].request, deaths[0]))
        self._changed()

    async def _logprobs(
        self, prompts: Sequence[TokenIds], answers: Sequence[TokenIds], share: tuple[int, int]
    ) -> Scores:
        last, (first_batch, apart) = ReplicaDied(""), share
        for _ in range(ATTEMPTS):
            await self._crew.somebody()
            replicas = self.replicas
            shares = (
                replica.logprobs(
                    prompts, answers, (first_batch + index * apart, apart * len(replicas))
                )
                for index, replica in enumerate(replicas)
            )
            try:
                found = await asyncio.gather(*shares)
            except ReplicaDied as died:
                last = died
            else:
                rows, values = zip(*found, strict=True)
                return np.concatenate(rows), np.concatenate(values)
        raise EngineFailed(
            f"processes of the engine died {ATTEMPTS} times while they scored answers "
            f"({last.problem})",
            remedy_of(last),
        )


class ReplicatedVllm(ReplicatedEngine):
    """Processes that each batch continuously: a block goes to the one that has least to do."""

    def __init__(self, crew: Crew) -> None:
        super().__init__(crew)
        self._homes: dict[str, tuple[Replica, int]] = {}
        self._under_way: Counter[Replica] = Counter()

    async def generate(self, request: Request) -> list[Completion]:
        """See ``prefloop.data.protocol.Engine``."""
        home, last = self._home(request), ReplicaDied("")
        for _ in range(ATTEMPTS):
            await self._crew.somebody()
            if home is None or home not in self._crew.live:
                home = min(self._crew.live, key=self._under_way.__getitem__)
            self._under_way[home] += len(request.seeds)
            try:
                return await home.generate(request)
            except ReplicaDied as died:
                last = died
            finally:
                self._under_way[home] -= len(request.seeds)
        raise _poisonous(request, last)

    @property
    def can_sleep(self) -> bool:
        """See ``VllmInProcess``."""
        return bool(self._facts["can_sleep"])

    async def sleep(self) -> None:
        """See ``VllmInProcess``."""
        await self._crew.sleep()

    async def wake_up(self) -> None:
        """See ``VllmInProcess``."""
        await self._crew.wake_up()

    async def restart(self, path: str) -> None:
        """See ``VllmInProcess``."""
        await self._crew.restart(path)

    def _home(self, request: Request) -> Replica | None:
        """Who has the requests of this one's block; null where nobody is there now."""
        live = self._crew.live
        home, arrived = self._homes.pop(request.block, (None, 0))
        if home not in live:
            home = min(live, key=self._under_way.__getitem__, default=None)
        if home is not None and request.block and arrived + 1 < request.block_size:
            self._homes[request.block] = (home, arrived + 1)
        return home


async def _ask(replica: Replica, pending: Pending, size: int) -> None:
    """Ask for ``pending`` as one of ``size``: as many as there are, if fewer were released."""
    try:
        found = await replica.generate(replace(pending.request, block_size=size))
    except ReplicaDied:
        raise
    except (RequestRejected, EngineFailed) as error:
        if not pending.done.done():
            pending.done.set_exception(error)
    else:
        if not pending.done.done():
            pending.done.set_result(found)


def _poisonous(request: Request, last: ReplicaDied) -> EngineFailed:
    what = f"block {request.block}" if request.block else f"request {request.request_id}"
    return EngineFailed(
        f"{what} was given to {ATTEMPTS} processes of the engine, and each died ({last.problem})",
        remedy_of(last),
    )
