"""Blocks of prompts through a stage in this process, several in flight across shard borders."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial

from prefloop.pipeline.executors.block_task import BlockJob, Make, Take


class LocalExecutor:
    """Works on blocks in this process's event loop."""

    async def open(self, job: BlockJob) -> LocalJob:
        """See ``prefloop.pipeline.executors.block_task.Executor``."""
        return LocalJob(job, await job.here())

    async def aclose(self) -> None:
        """Nothing was opened that is not the caller's."""


@dataclass(frozen=True)
class LocalJob:
    """A job whose models are open."""

    job: BlockJob
    make: Make

    async def run(self, blocks: Sequence[int], *, begin: Callable[[int], None], take: Take) -> None:
        """See ``prefloop.pipeline.executors.block_task.OpenJob``."""
        shelf = self.job.shelf

        async def work(index: int) -> None:
            begin(index)
            tables = await self.make(index)
            await take(shelf.facts(index, tables), partial(shelf.keep, index, tables))

        await run_blocks(blocks, work, in_flight=self.job.in_flight)


async def run_blocks(
    blocks: Iterable[int], work: Callable[[int], Awaitable[None]], *, in_flight: int
) -> None:
    """Await ``work(block)`` for every block, at most ``in_flight`` at once, begun in order.

    While the last requests of one block finish, the next block already feeds the engine. The
    first error cancels what is in flight and is raised; finished blocks are committed by then.
    """
    pending: set[asyncio.Task[None]] = set()
    try:
        for block in blocks:
            pending.add(asyncio.ensure_future(work(block)))
            if len(pending) >= in_flight:
                pending = await _reap(pending)
        while pending:
            pending = await _reap(pending)
    finally:
        for task in pending:
            task.cancel()
        await asyncio.gather(*pending, return_exceptions=True)


async def _reap(pending: set[asyncio.Task[None]]) -> set[asyncio.Task[None]]:
    done, rest = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
    errors = [task.exception() for task in done if task.exception() is not None]
    if errors:
        for task in rest:
            task.cancel()
        await asyncio.gather(*rest, return_exceptions=True)
        raise errors[0]  # type: ignore[misc]
    return rest
