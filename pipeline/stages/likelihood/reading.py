"""The stage that computes log-probabilities of texts under checkpoints, block by block.

A block is a share of the batches of a reading, and a reading all texts of a kind under one
checkpoint. Batches are formed of all texts, whoever reads them and in how many blocks: so the bits
are those of one process that reads all at once.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from prefloop.data.hashing import json_hash
from prefloop.data.schemas import LOGPROB
from prefloop.data.shards import ShardFolder
from prefloop.pipeline.executors.block_task import (
    BlockFacts,
    BlockJob,
    BlockTask,
    Keep,
    Make,
    Tables,
)
from prefloop.pipeline.run.context import RoundContext
from prefloop.pipeline.run.models import revision
from prefloop.pipeline.run.progress import StepProgress
from prefloop.pipeline.run.run_dir import RunError
from prefloop.pipeline.stages.likelihood.measured_texts import MeasuredTexts, TextsOfPolicy
from prefloop.training.policy.logprobs import ReadShare, Scorer, Scores, whole_of

logger = logging.getLogger(__name__)

LOGPS = "log-probabilities"
"""Name of the stage."""
TEXTS_OF_BLOCK = 128
"""Texts of a block, about."""
_REMEDY = (
    "a worker loads one policy at a time, with room for 16 of its answers: let workers have GPUs "
    "(or memory) for that, or answers be shorter (evaluate.max_tokens)"
)

OpenScorer = Callable[[str | None], AbstractAsyncContextManager[Scorer]]
"""Opens what computes log-probabilities, in a type of numbers; null: the engine's."""


@dataclass(frozen=True)
class Reading:
    """Texts that are read by a policy."""

    texts: str
    """Name of the texts."""
    under: str
    """What the policy is here: ``policy``, ``other`` or ``reference``."""
    checkpoint: Path


@dataclass(frozen=True)
class ReadingOrder:
    """Which blocks there are and what is in them, as another machine can be told."""

    of: TextsOfPolicy
    readings: tuple[Reading, ...]
    shares: tuple[int, ...]
    """Blocks of each reading."""
    key: str
    """A hash of the texts, the checkpoints and the number of blocks."""
    start: Path
    """The starting policy's checkpoint in this process: each machine has its own copy."""
    dtype: str | None
    """The type of numbers in which blocks were computed that are there; null: there are none."""

    def at(self, index: int) -> tuple[int, tuple[int, int]]:
        """The number of the reading that block ``index`` belongs to, and its share of that."""
        for number, shares in enumerate(self.shares):
            if index < shares:
                return number, (index, shares)
            index -= shares
        raise IndexError(index)

    def blocks(self) -> range:
        """Every block."""
        return range(sum(self.shares))

    def details(self) -> dict[str, Any]:
        """It, as JSON has it."""
        return {
            "policy": self.of.policy, "untempered": self.of.untempered,
            "folder": self._named(self.of.folder), "key": self.key, "dtype": self.dtype,
            "shares": [*self.shares],
            "readings": [
                [one.texts, one.under, self._named(one.checkpoint)] for one in self.readings
            ],
        }  # fmt: skip

    def _named(self, checkpoint: Path) -> str | None:
        return None if checkpoint == self.start else str(checkpoint.absolute())

    @staticmethod
    def read(details: Mapping[str, Any], start: Path) -> ReadingOrder:
        """What :meth:`details` gave, for a machine with this starting policy."""

        def at(checkpoint: str | None) -> Path:
            return start if checkpoint is None else Path(checkpoint)

        return ReadingOrder(
            TextsOfPolicy(details["policy"], details["untempered"], at(details["folder"])),
            tuple(Reading(texts, under, at(one)) for texts, under, one in details["readings"]),
            tuple(details["shares"]),
            details["key"],
            start,
            details["dtype"],
        )


async def log_probabilities(
    context: RoundContext,
    of: TextsOfPolicy,
    readings: Sequence[tuple[Reading, MeasuredTexts]],
    start: Path,
    open_scorer: OpenScorer,
) -> list[NDArray[np.float64]]:
    """Those of each reading's texts [N], in nats. What was computed before lies in shards, and is
    not computed again. ``start``: the starting policy."""
    sizes = [len(measured.texts) for _, measured in readings]
    for again in (False, True):
        order = await asyncio.to_thread(_order_of, context, of, readings, start)
        shards = _shards(context, order)
        if missing := shards.missing(order.blocks()):
            await _read(context, order, open_scorer, missing)
        try:
            return await asyncio.to_thread(_together, shards, order, sizes)
        except ValueError as error:  # other batches were formed of the same texts
            if again:
                raise RunError(
                    f"{shards.folder}: workers differ in what is in a block ({error}): let them "
                    "be machines of one kind, with the same packages"
                ) from None
            logger.warning(
                "%s: blocks were computed by another version or kind of machine, which puts other "
                "answers into a block: all are computed again",
                shards.folder,
            )
            shards.remove()
    raise AssertionError


async def _read(
    context: RoundContext, order: ReadingOrder, open_scorer: OpenScorer, blocks: Sequence[int]
) -> None:
    async with AsyncExitStack() as opened:
        ready = await context.executor.open(reading_job(context, order, open_scorer, opened))
        with StepProgress(f"{LOGPS}, policy {order.of.policy}", len(blocks), unit="blocks") as bar:

            async def take(facts: BlockFacts, keep: Keep) -> None:
                del facts  # a text that cannot be read ends the stage
                await keep()
                bar.advance(1)

            await ready.run(blocks, begin=lambda _: bar.begin(1), take=take)


def reading_job(
    context: RoundContext, order: ReadingOrder, open_scorer: OpenScorer, opened: AsyncExitStack
) -> BlockJob:
    """What a block of ``order`` takes; what it opens is closed with ``opened``."""

    async def here() -> Make:
        scorer = await opened.enter_async_context(open_scorer(order.dtype))
        desk = _Desk(context, order, scorer)
        opened.callback(desk.clear)  # before the room is given back that the scorer took
        return desk.make

    task = BlockTask(LOGPS, context.run.root, context.index, order.details(), _REMEDY)
    return BlockJob(task, ReadBlocks(_shards(context, order)), here, in_flight=1)


class _Desk:
    """Reads one block at a time, so that one checkpoint is in memory."""

    def __init__(self, context: RoundContext, order: ReadingOrder, scorer: Scorer) -> None:
        self._context, self._order, self._scorer = context, order, scorer
        self._busy = asyncio.Lock()
        self._opened: tuple[int, ReadShare, Sequence[str]] | None = None

    async def make(self, index: int) -> Tables:
        """Block ``index``."""
        async with self._busy:
            return (await asyncio.to_thread(self._made, index),)

    def clear(self) -> None:
        """Let go of the checkpoint."""
        self._opened = None

    def _made(self, index: int) -> pa.Table:
        number, share = self._order.at(index)
        if self._opened is None or self._opened[0] != number:
            self.clear()  # before the next one comes
            self._opened = (number, *self._open(self._order.readings[number]))
        _, read, prompts = self._opened
        rows, values = read(share)
        ascending = np.argsort(rows)  # however many processes read it
        rows, values = rows[ascending], values[ascending]
        reading = self._order.readings[number]
        return pa.table(
            {
                "texts": [reading.texts] * len(rows),
                "under": [reading.under] * len(rows),
                "row": rows,
                "prompt_id": [prompts[row] for row in rows],
                "logprob": values,
                "dtype": [self._scorer.dtype] * len(rows),
            },
            schema=LOGPROB,
        )

    def _open(self, reading: Reading) -> tuple[ReadShare, Sequence[str]]:
        found = self._order.of.find(reading.texts, self._context)
        assert found is not None, "whoever ordered it found them"
        return self._scorer.read(reading.checkpoint, found.texts), found.prompt_ids


@dataclass(frozen=True)
class ReadBlocks:
    """Log-probabilities by block; see ``prefloop.pipeline.executors.block_task.Shelf``."""

    shards: ShardFolder

    def facts(self, index: int, tables: Tables) -> BlockFacts:
        """Nothing is to be said of a block but that it is there."""
        del tables
        return BlockFacts(index, {})

    async def keep(self, index: int, tables: Tables) -> bool:
        """Write it."""
        [table] = tables
        return await asyncio.to_thread(self.shards.write, index, table)

    def kept(self, index: int) -> Tables | None:
        """It, as it was written."""
        return (self.shards.read(index),) if self.shards.exists(index) else None


def _order_of(
    context: RoundContext,
    of: TextsOfPolicy,
    readings: Sequence[tuple[Reading, MeasuredTexts]],
    start: Path,
) -> ReadingOrder:
    shares = tuple(-(-len(texts.texts) // TEXTS_OF_BLOCK) for _, texts in readings)
    revisions = {path: revision(str(path)) for path in {one.checkpoint for one, _ in readings}}
    about = [
        [one.texts, one.under, revisions[one.checkpoint], blocks, _hash_of(texts)]
        for (one, texts), blocks in zip(readings, shares, strict=True)
    ]
    order = ReadingOrder(
        of, tuple(one for one, _ in readings), shares, json_hash(about)[:12], start, None
    )
    return replace(order, dtype=_dtype_of(_shards(context, order)))


def _hash_of(measured: MeasuredTexts) -> str:
    texts = measured.texts
    return json_hash([texts.prompts, texts.answers, texts.complete, texts.template_kwargs])


def _shards(context: RoundContext, order: ReadingOrder) -> ShardFolder:
    return context.run.log_probabilities(order.of.policy, order.key)


def _dtype_of(shards: ShardFolder) -> str | None:
    """In which type of numbers it was begun: two that are compared are rounded alike."""
    for table in shards.iter(["dtype"]):
        if len(table):
            return str(table["dtype"][0].as_py())
    return None


def _together(
    shards: ShardFolder, order: ReadingOrder, sizes: Sequence[int]
) -> list[NDArray[np.float64]]:
    """Raises ``ValueError`` where the blocks are not those of one reading."""
    found: list[list[Scores]] = [[] for _ in sizes]
    for index in order.blocks():
        number, _ = order.at(index)
        table = shards.read(index, ["row", "logprob"])
        found[number].append((table["row"].to_numpy(), table["logprob"].to_numpy()))
    return [whole_of(shares, size) for shares, size in zip(found, sizes, strict=True)]
