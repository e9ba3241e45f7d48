"""Work that takes tables and no model: nothing of it waits, so one unit at a time is enough for a
process."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from prefloop.pipeline.executors.block_task import BlockFacts, BlockJob, Executor, Keep
from prefloop.pipeline.executors.local import LocalExecutor


async def run_units(
    executor: Executor,
    job: BlockJob,
    units: Sequence[int],
    heard: Callable[[BlockFacts], None] = lambda _: None,
) -> None:
    """Have ``units`` of ``job`` worked on and kept; ``heard`` hears of each that is. A job that has
    one in all is done in this process: another would take longer to begin."""
    if not units:
        return
    is_small = len(job.task.details["units"]) < 2
    ready = await (LocalExecutor() if is_small else executor).open(job)

    async def take(facts: BlockFacts, keep: Keep) -> None:
        await keep()
        heard(facts)

    await ready.run(units, begin=lambda _: None, take=take)
