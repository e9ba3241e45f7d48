"""What passes between a stage, which knows its blocks, and an executor, which has them worked on.

A block is known by its index alone. Its rows lie in shards, which whoever works on it reads and
writes, so that an executor carries no data: an index goes out, and facts come back.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import pyarrow as pa

from prefloop.data.errors import PrefloopError

Tables = tuple[pa.Table, ...]
"""What was made of a block: the stage's shards of it."""
Make = Callable[[int], Awaitable[Tables]]
"""Works on a block."""
Keep = Callable[[], Awaitable[bool]]
"""Has what was made of a block written; false where another wrote the block before."""


class ExecutorFailed(PrefloopError):
    """Blocks cannot be worked on where they should be."""


@dataclass(frozen=True)
class BlockTask:
    """What is to be done with the blocks of a stage, as plain data: another machine can do it."""

    stage: str
    """As the journal calls it."""
    root: Path
    """The directory of the run."""
    round: int
    details: Mapping[str, Any] = field(default_factory=dict)
    """What else the stage must know, JSON throughout."""
    remedy: str = (
        "change the prompts of that block (shard {block} in prompt/) or what works on them"
    )
    """What to do about a block that ends whoever works on it."""

    def name_of(self, index: int) -> str:
        """What block ``index`` is called: one that stands for several (see
        ``prefloop.pipeline.run.spans.SpanUnits``) by the first and the last of them."""
        for spans in self.details.get("units", ()):
            first, last = spans[0][0], spans[-1][-1]
            if first == index != last:
                return f"blocks {first} to {last}"
        return f"block {index}"


@dataclass(frozen=True)
class BlockFacts:
    """What is to be said of a block that was worked on."""

    block: int
    tally: Mapping[str, Mapping[str, int]]
    """What came and what did not; see ``prefloop.pipeline.run.all_or_some``."""
    tokens: int = 0
    cost: float = 0.0
    failed: int = 0
    """Rows of quarantine."""
    found: Tables = ()
    """Small tables that the stage adds up."""

    @property
    def nothing_came(self) -> bool:
        """Whether all that was asked failed."""
        counts = [reasons for reasons in self.tally.values() if sum(reasons.values())]
        return bool(counts) and not any(reasons.get("") for reasons in counts)


class Shelf(Protocol):
    """The blocks of a stage as they are written. It needs no model."""

    def facts(self, index: int, tables: Tables) -> BlockFacts:
        """What is to be said of ``tables``, made of block ``index``."""

    async def keep(self, index: int, tables: Tables) -> bool:
        """Write ``tables``; false where another wrote the block before, which stays."""

    def kept(self, index: int) -> Tables | None:
        """What was written of block ``index``; null where it was not."""


@dataclass(frozen=True)
class BlockJob:
    """A task with what it takes to do it in this process."""

    task: BlockTask
    shelf: Shelf
    here: Callable[[], Awaitable[Make]]
    """Opens what the work needs: it may load models."""
    in_flight: int
    """Blocks to work on at once."""


Take = Callable[[BlockFacts, Keep], Awaitable[None]]
"""Hears of each block that was worked on, as it comes, and has it kept or not."""


class OpenJob(Protocol):
    """A job that can begin."""

    async def run(self, blocks: Sequence[int], *, begin: Callable[[int], None], take: Take) -> None:
        """Have ``blocks`` worked on. ``begin`` hears which block is begun, in the task that hears
        of it in ``take``; only where both are in this process.

        The first error of the work or of ``take`` ends it and is raised; nobody works on a block
        any more by then.
        """


class Executor(Protocol):
    """Has blocks worked on."""

    @property
    def shares_files(self) -> bool:
        """Whether whoever works on a block can write what this process then reads."""

    async def open(self, job: BlockJob) -> OpenJob:
        """Make ready for ``job``."""

    async def aclose(self) -> None:
        """Give back what was opened; it comes back when it is asked for."""
