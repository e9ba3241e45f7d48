"""Blocks of prompts through a stage in this process, several in flight across shard borders."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from functools import partial

from prefloop.pipeline.executors.block_task import BlockJob, Make, Take
from prefloop.pipeline.machine.engine_load import AskingBlock, EngineLoads, ask_as
from prefloop.pipeline.machine.garbage import searched_less_often


@dataclass(frozen=True)
class Admission:
    """Further blocks than a stage's own number begin as long as ``loads`` has room, up to
    ``most``."""

    loads: EngineLoads
    most: int

    def is_full(self, begun: Collection[AskingBlock], in_flight: int) -> bool:
        """Whether no block may begin beside those that have ``begun``, a stage's own number being
        ``in_flight``."""
        if len(begun) < in_flight:
            return False
        # A block that has not asked yet is not in the loads.
        heard = all(asker.asked for asker in begun)
        return not (len(begun) < self.most and heard and self.loads.has_room)


class LocalExecutor:
    """Works on blocks in this process's event loop."""

    shares_files = True

    def __init__(self, admission: Callable[[], Admission | None] = lambda: None) -> None:
        """``admission`` says, once a job's models are open, by what more blocks begin than the job
        says; null: no more."""
        self._admission = admission

    async def open(self, job: BlockJob) -> LocalJob:
        """See ``prefloop.pipeline.executors.block_task.Executor``."""
        make = await job.here()
        return LocalJob(job, make, self._admission())

    async def aclose(self) -> None:
        """Nothing was opened that is not the caller's."""


@dataclass(frozen=True)
class LocalJob:
    """A job whose models are open."""

    job: BlockJob
    make: Make
    admission: Admission | None = None

    async def run(self, blocks: Sequence[int], *, begin: Callable[[int], None], take: Take) -> None:
        """See ``prefloop.pipeline.executors.block_task.OpenJob``."""
        shelf = self.job.shelf

        async def work(index: int) -> None:
            begin(index)
            tables = await self.make(index)
            await take(shelf.facts(index, tables), partial(shelf.keep, index, tables))

        await run_blocks(blocks, work, in_flight=self.job.in_flight, admission=self.admission)


async def run_blocks(
    blocks: Iterable[int],
    work: Callable[[int], Awaitable[None]],
    *,
    in_flight: int,
    admission: Admission | None = None,
) -> None:
    """Await ``work(block)`` for every block, at most ``in_flight`` at once, begun in order; more
    where ``admission`` has room for them.

    While the last requests of one block finish, the next block already feeds the engine. The
    first error cancels what is in flight and is raised; finished blocks are committed by then.
    """
    admission = admission or Admission(EngineLoads(), in_flight)
    pending: dict[asyncio.Task[None], AskingBlock] = {}
    room = asyncio.Event()

    async def begin(block: int, asker: AskingBlock) -> None:
        ask_as(asker)
        await work(block)

    try:
        with searched_less_often(), admission.loads.heard_by(room.set):
            for block in blocks:
                while admission.is_full(pending.values(), in_flight):
                    await _wait(pending, room)
                asker = AskingBlock()
                pending[asyncio.ensure_future(begin(block, asker))] = asker
            while pending:
                await _wait(pending)
    finally:
        for task in pending:
            task.cancel()
        await asyncio.gather(*pending, return_exceptions=True)


async def _wait(
    pending: dict[asyncio.Task[None], AskingBlock], room: asyncio.Event | None = None
) -> None:
    """Wait until one of ``pending`` is done, which leaves it, or ``room`` is set, which is cleared.
    Raises what a task raised, when all others are at their end."""
    until = [asyncio.ensure_future(room.wait())] if room else []
    try:
        await asyncio.wait([*pending, *until], return_when=asyncio.FIRST_COMPLETED)
    finally:
        for one in until:
            one.cancel()
    if room:
        room.clear()
    done = [task for task in pending if task.done()]
    for task in done:
        del pending[task]
    errors = [task.exception() for task in done if task.exception() is not None]
    if errors:
        for task in pending:
            task.cancel()
        await asyncio.gather(*pending, return_exceptions=True)
        raise errors[0]  # type: ignore[misc]
