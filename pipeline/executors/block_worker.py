"""What a worker of a cluster does: it opens what a stage needs, works on the blocks that it is
given, and writes them itself."""

from __future__ import annotations

import asyncio
import base64
import json
import logging
import os
import platform
import socket
import traceback
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, NoReturn

import pyarrow as pa
import pyarrow.ipc

from prefloop.data.errors import PrefloopError
from prefloop.data.protocol import EngineDied
from prefloop.pipeline.executors.attempts import Attempts, StageOver
from prefloop.pipeline.executors.attempts_board import AttemptsOnBoard
from prefloop.pipeline.executors.block_task import (
    BlockFacts,
    BlockTask,
    ExecutorFailed,
)
from prefloop.pipeline.executors.local import Admission, LocalJob
from prefloop.pipeline.machine.engine_load import AskingBlock, EngineLoads, ask_as
from prefloop.pipeline.machine.packages import package_versions

_GO_ON = "{}: the same command goes on"
_LOOK_S = 1.0
"""Seconds between two looks whether the stage is over."""


@dataclass(frozen=True)
class StoredRun:
    """A run directory on an object store."""

    address: str
    copy: Path
    """The driver's working copy of what is there."""


@dataclass(frozen=True)
class WorkOrder:
    """All that a worker is told, as plain data. No key is in it: those are in its environment."""

    task: BlockTask
    config: Mapping[str, Any]
    """The run's, in full."""
    root: Path
    """The run directory, with the response cache and the budgets."""
    policy: str | None
    """The checkpoint that ``policy`` means; null: the starting policy."""
    folder: Path | None
    """Where relative paths begin; null: where the worker is begun."""
    generation: Path
    """See ``prefloop.pipeline.executors.attempts``."""
    attempts: int
    """Tries of a block at most."""
    in_flight: int
    """Blocks to work on at once, whatever the load."""
    versions: Mapping[str, str]
    """What the driver has installed, and its kind of processor."""
    host: str
    """The driver's."""
    store: StoredRun | None = None
    """Where the run directory is on an object store. Workers then read what is there in copies of
    their own, and hand back what they made to the driver, who alone writes."""


JobOf = Callable[[WorkOrder], Awaitable[LocalJob]]
"""Opens the job of an order: it knows the stages."""


def versions_here() -> dict[str, str]:
    """What decides whether two machines compute the same, as far as one can name it."""
    python = platform.python_version().rpartition(".")[0]
    return package_versions() | {"python": python, "processor": platform.machine()}


class BlockWorker:
    """Works on blocks, several at once; Ray calls it with one index at a time.

    It is given more blocks than it works on: the others wait until one is done, or until its
    engines have room. A block that was tried before is worked on alone, so that it takes no other
    with it again.
    """

    def __init__(self, order: WorkOrder, job_of: JobOf, board: Any = None) -> None:
        """``board``: where tries are noted instead of in files; see
        ``prefloop.pipeline.executors.attempts_board``."""
        self._order, self._job_of = order, job_of
        self._attempts = Attempts(order.generation) if board is None else AttemptsOnBoard(board)
        self._gate = _Gate(order.in_flight)
        self._opening = asyncio.Lock()
        self._opened: LocalJob | None = None
        self._said = _Said()
        logging.getLogger("prefloop").addHandler(self._said)

    async def __call__(self, batch: Mapping[str, Any]) -> dict[str, list[str]]:
        """The facts of the block in ``batch``, as a row."""
        row = await self._row(int(batch["block"][0]))
        return {"row": [json.dumps(row | {"said": self._said.taken()})]}

    async def _row(self, index: int) -> dict[str, Any]:
        try:
            return await self._unless_over(index)
        except StageOver:
            if self._order.store is not None:
                lost = f"{socket.gethostname()} lost the process that waits for its blocks"
                return {"block": index, "problem": packed(ExecutorFailed(_GO_ON.format(lost)))}
            return {"block": index, "over": f"{self._order.generation} on {socket.gethostname()}"}
        except PrefloopError as error:
            return {"block": index, "problem": packed(error)}

    async def _unless_over(self, index: int) -> dict[str, Any]:
        """Work on block ``index`` as long as somebody waits for it."""
        if self._order.store is None and not self._order.root.is_dir():
            raise ExecutorFailed(
                f"{socket.gethostname()} has no {self._order.root}: let run_dir be a folder that "
                "all nodes of the cluster share"
            )
        work = asyncio.ensure_future(self._work(index))
        over = asyncio.ensure_future(self._over())
        try:
            await asyncio.wait({work, over}, return_when=asyncio.FIRST_COMPLETED)
            if not work.done():
                raise StageOver
            return work.result()
        finally:
            for one in (work, over):
                one.cancel()
            await asyncio.gather(work, over, return_exceptions=True)

    async def _over(self) -> None:
        while not await asyncio.to_thread(self._attempts.is_over):
            await asyncio.sleep(_LOOK_S)

    async def _work(self, index: int) -> dict[str, Any]:
        tried = await asyncio.to_thread(self._attempts.count, index)
        async with self._gate.passed(alone=tried > 0) as asker:
            ask_as(asker)
            number = await asyncio.to_thread(self._attempts.begin_try, index)
            if number > self._order.attempts:
                raise await asyncio.to_thread(self._poison, index)
            try:
                return await self._made(index)
            except EngineDied as error:
                self._die(index, number, str(error))
            except (PrefloopError, StageOver):
                raise
            except Exception as error:  # noqa: BLE001  # whatever it is, another process may do
                self._die(index, number, f"{type(error).__name__}: {error}")

    async def _made(self, index: int) -> dict[str, Any]:
        opened = await self._open()
        shelf = opened.job.shelf
        if self._order.store is not None:
            made = await opened.make(index)
            return row_of(shelf.facts(index, made)) | {"tables": [*map(as_text, made)]}
        tables = await asyncio.to_thread(shelf.kept, index)
        if tables is None:
            tables = await opened.make(index)
            facts = shelf.facts(index, tables)
            if self._attempts.is_over():
                raise StageOver
            if facts.nothing_came:  # whether that counts is to be seen from all blocks
                assert isinstance(self._attempts, Attempts)
                self._attempts.hold(index, tables)
                return row_of(facts) | {"held": len(tables)}
            if not await shelf.keep(index, tables):  # another wrote it, and that stays
                tables = await asyncio.to_thread(shelf.kept, index) or tables
        return row_of(shelf.facts(index, tables))

    async def _open(self) -> LocalJob:
        async with self._opening:
            if self._opened is None:
                self._settle_in()
                self._opened = await self._job_of(self._order)
                self._gate.widen(self._opened.admission)
            return self._opened

    def _settle_in(self) -> None:
        here, there = versions_here(), self._order.versions
        other = [
            f"{name} {here.get(name, '(none)')} for {there.get(name, '(none)')}"
            for name in sorted({*here, *there})
            if here.get(name) != there.get(name)
        ]
        if other:
            raise ExecutorFailed(
                f"{socket.gethostname()} has {', '.join(other)} where the run was started: it may "
                "compute other answers: install the same versions on all nodes"
            )
        folder = self._order.folder
        if folder is None:
            return
        if not folder.is_dir():
            raise ExecutorFailed(
                f"{socket.gethostname()} has no {folder}, where the run was started: set "
                "executor.working_dir, which is sent to the workers, or share that folder"
            )
        os.chdir(folder)

    def _poison(self, index: int) -> ExecutorFailed:
        task, most = self._order.task, self._order.attempts
        why = self._attempts.reason(index) or "they were killed, as for want of memory: see their "
        why += "" if self._attempts.reason(index) else "logs in Ray's dashboard"
        name = task.name_of(index)
        tried = "it" if name == f"block {index}" else "them"
        return ExecutorFailed(
            f"round {task.round} {task.stage}: {name} ended {most} workers that tried {tried} "
            f"({' '.join(why.split())}). All other blocks that were done are kept: "
            f"{task.remedy.format(block=index)}, or raise executor.attempts; the same command then "
            "goes on"
        )

    def _die(self, index: int, number: int, why: str) -> NoReturn:
        """End this process: its engines cannot be trusted, and Ray begins another."""
        try:
            traceback.print_exc()
            self._attempts.say(index, number, why)
        finally:
            os._exit(1)


class _Gate:
    """Lets so many blocks through together, more where engines have room, or one alone; who waits
    to be alone comes before who does not."""

    def __init__(self, together: int) -> None:
        self._together = together
        self._admission = Admission(EngineLoads(), together)
        self._inside: set[AskingBlock] = set()
        self._alone_next = 0
        self._is_taken = False
        self._waiting: dict[asyncio.Event, None] = {}
        """In the order in which they came."""

    def widen(self, admission: Admission | None) -> None:
        """Let more through as ``admission`` says; null: no more."""
        self._admission = admission or self._admission
        self._tell()

    @asynccontextmanager
    async def passed(self, *, alone: bool) -> AsyncIterator[AskingBlock]:
        """Wait to be let through; leave the gate at the end."""
        self._alone_next += alone
        try:
            await self._until(lambda: self._is_open(alone=alone))
        finally:
            self._alone_next -= alone
            self._tell()
        asker = AskingBlock()
        self._inside.add(asker)
        self._is_taken = alone
        try:
            yield asker
        finally:
            self._inside.discard(asker)
            self._is_taken = False
            self._tell()

    def _is_open(self, *, alone: bool) -> bool:
        if alone:
            return not self._inside
        is_reserved = self._is_taken or self._alone_next > 0
        return not is_reserved and not self._admission.is_full(self._inside, self._together)

    async def _until(self, is_so: Callable[[], bool]) -> None:
        told = asyncio.Event()
        self._waiting[told] = None
        try:
            while not is_so():
                told.clear()
                with self._admission.loads.heard_by(told.set):
                    await told.wait()
        finally:
            del self._waiting[told]

    def _tell(self) -> None:
        for waiting in self._waiting:
            waiting.set()


class _Said(logging.Handler):
    """Gathers what was warned of, for the driver to say."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self._lines: list[tuple[int, str]] = []

    def emit(self, record: logging.LogRecord) -> None:
        self._lines.append((record.levelno, record.getMessage()))

    def taken(self) -> list[tuple[int, str]]:
        """What was said since the last call."""
        taken, self._lines = self._lines, []
        return taken


def row_of(facts: BlockFacts) -> dict[str, Any]:
    """``facts`` as JSON has them."""
    return {
        "block": facts.block, "tally": facts.tally, "tokens": facts.tokens, "cost": facts.cost,
        "failed": facts.failed, "found": [*map(as_text, facts.found)],
    }  # fmt: skip


def facts_in(row: Mapping[str, Any]) -> BlockFacts:
    """What :func:`row_of` was given."""
    found = tuple(map(table_in, row["found"]))
    return BlockFacts(row["block"], row["tally"], row["tokens"], row["cost"], row["failed"], found)


def as_text(table: pa.Table) -> str:
    """``table`` in a string."""
    file = pa.BufferOutputStream()
    options = pa.ipc.IpcWriteOptions(compression="zstd")
    with pa.ipc.new_stream(file, table.schema, options=options) as stream:
        stream.write_table(table)
    return base64.b64encode(file.getvalue()).decode()


def table_in(text: str) -> pa.Table:
    """What :func:`as_text` was given."""
    with pa.ipc.open_stream(base64.b64decode(text)) as stream:
        return stream.read_all()


def packed(error: PrefloopError) -> dict[str, Any]:
    """``error`` as JSON has it: by its type and its words."""
    kind = type(error)
    return {
        "module": kind.__module__,
        "name": kind.__qualname__,
        "args": [str(one) for one in error.args],
        "words": {key: one for key, one in vars(error).items() if isinstance(one, str)},
    }


def unpacked(problem: Mapping[str, Any]) -> PrefloopError:
    """The error that :func:`packed` was given."""
    kind = getattr(import_module(problem["module"]), problem["name"])
    assert issubclass(kind, PrefloopError)
    error: PrefloopError = kind.__new__(kind, *problem["args"])
    vars(error).update(problem["words"])
    return error
