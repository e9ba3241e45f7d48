"""A worker without a cluster: who is first, who is alone, what is held, what is said."""

from __future__ import annotations

import asyncio
import json
import logging
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from prefloop.data.errors import NothingCameOut, PrefloopError
from prefloop.data.protocol import EngineDied, EngineFailed, EverythingRefused
from prefloop.pipeline.executors import block_worker
from prefloop.pipeline.executors.attempts import Attempts, StageOver
from prefloop.pipeline.executors.block_task import (
    BlockFacts,
    BlockJob,
    BlockTask,
    ExecutorFailed,
    Tables,
)
from prefloop.pipeline.executors.block_worker import (
    BlockWorker,
    WorkOrder,
    facts_in,
    packed,
    unpacked,
    versions_here,
)
from prefloop.pipeline.executors.local import Admission, LocalExecutor, LocalJob
from prefloop.pipeline.machine.engine_load import EngineLoads


@dataclass
class Board:
    """Blocks of numbers, in memory."""

    written: dict[int, Tables] = field(default_factory=dict)

    def facts(self, index: int, tables: Tables) -> BlockFacts:
        [table] = tables
        return BlockFacts(index, {"": {"" if len(table) else "none": 1}}, tokens=len(table))

    async def keep(self, index: int, tables: Tables) -> bool:
        return self.written.setdefault(index, tables) is tables

    def kept(self, index: int) -> Tables | None:
        return self.written.get(index)


def numbers(*values: int) -> Tables:
    return (pa.table({"n": pa.array(values, pa.int64())}),)


def order_in(run: Path, **changes: Any) -> WorkOrder:
    attempts = Attempts.begin(run)
    whole = WorkOrder(
        task=BlockTask("sample", run, 0),
        config={},
        root=run,
        policy=None,
        folder=None,
        generation=attempts.folder,
        attempts=2,
        versions=versions_here(),
        host="here",
        in_flight=2,
    )
    return replace(whole, **changes)


def worker(
    order: WorkOrder, board: Board, make: Any, admission: Admission | None = None
) -> BlockWorker:
    async def here() -> Any:
        return make

    async def job_of(order: WorkOrder) -> LocalJob:
        job = BlockJob(order.task, board, here, order.in_flight)
        return await LocalExecutor(lambda: admission).open(job)

    return BlockWorker(order, job_of)


def rows_of(made: BlockWorker, *blocks: int) -> list[dict[str, Any]]:
    async def go() -> list[Any]:
        return await asyncio.gather(*(made({"block": [one]}) for one in blocks))

    return [json.loads(row["row"][0]) for row in asyncio.run(go())]


async def two(index: int) -> Tables:
    return numbers(index, index)


def test_a_block_is_written_and_its_facts_come_back(tmp_path: Path) -> None:
    board = Board()
    [row] = rows_of(worker(order_in(tmp_path), board, two), 3)
    assert facts_in(row) == BlockFacts(3, {"": {"": 1}}, tokens=2)
    assert board.written[3][0]["n"].to_pylist() == [3, 3]


def test_small_tables_come_back_with_the_facts(tmp_path: Path) -> None:
    class Adding(Board):
        def facts(self, index: int, tables: Tables) -> BlockFacts:
            return BlockFacts(index, {}, found=tables)

    board = Adding()
    [row] = rows_of(worker(order_in(tmp_path), board, two), 3)
    assert facts_in(row) == BlockFacts(3, {}, found=numbers(3, 3))
    assert not facts_in(row).nothing_came


def test_the_first_who_wrote_a_block_wrote_it(tmp_path: Path) -> None:
    board = Board()

    async def while_another_writes(index: int) -> Tables:
        board.written[index] = numbers(7)
        return numbers(1, 2, 3)

    made = worker(order_in(tmp_path), board, while_another_writes)
    assert [facts_in(row).tokens for row in rows_of(made, 0)] == [1]
    assert board.written[0][0]["n"].to_pylist() == [7]
    assert [facts_in(row).tokens for row in rows_of(made, 0)] == [1], "asked about it once more"


def test_a_block_of_which_nothing_came_waits_for_the_others(tmp_path: Path) -> None:
    board, order = Board(), order_in(tmp_path)

    async def nothing(index: int) -> Tables:
        return numbers()

    [row] = rows_of(worker(order, board, nothing), 5)
    assert row["held"] == 1
    assert not board.written
    [table] = Attempts(order.generation).held(5, 1)
    assert table.equals(numbers()[0])


@pytest.mark.parametrize(
    "error",
    [
        EngineFailed("budget reached: 5 of 4", "raise it"),
        EverythingRefused("refuses", "set x"),
        NothingCameOut("nothing"),
        ExecutorFailed("no node"),
    ],
)
def test_an_error_of_the_user_comes_back_as_what_it_is(
    tmp_path: Path, error: PrefloopError
) -> None:
    async def fails(index: int) -> Tables:
        raise error

    [row] = rows_of(worker(order_in(tmp_path), Board(), fails), 0)
    found = unpacked(json.loads(json.dumps(row["problem"])))
    assert type(found) is type(error)
    assert str(found) == str(error)
    assert found.exit_code == error.exit_code
    assert packed(found) == packed(error)


class Died(BaseException):
    pass


@pytest.mark.parametrize("error", [EngineDied("vLLM's engine process died"), ValueError("bug")])
def test_who_cannot_be_trusted_ends_and_the_block_is_named(
    tmp_path: Path, error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    def die(code: int) -> None:
        raise Died(code)

    monkeypatch.setattr(block_worker.os, "_exit", die)
    order = order_in(tmp_path)

    async def fails(index: int) -> Tables:
        raise error

    for _ in range(order.attempts):
        with pytest.raises(Died):
            rows_of(worker(order, Board(), fails), 4)
    [row] = rows_of(worker(order, Board(), fails), 4)
    said = str(unpacked(row["problem"]))
    assert "block 4 ended 2 workers" in said
    assert str(error) in said
    assert "shard 4 in prompt" in said


def test_a_block_that_was_tried_before_is_worked_on_alone(tmp_path: Path) -> None:
    order = order_in(tmp_path)
    Attempts(order.generation).begin_try(1)
    inside: set[int] = set()
    beside: list[set[int]] = []

    async def go() -> list[Any]:
        others = asyncio.Barrier(2)  # each waits for the other: they must be inside together

        async def make(index: int) -> Tables:
            inside.add(index)
            if index == 1:
                await asyncio.to_thread(lambda: None)
                beside.append(set(inside))
            else:
                await asyncio.wait_for(others.wait(), 60)
            inside.remove(index)
            return numbers(index)

        made = worker(order, Board(), make)
        return await asyncio.gather(*(made({"block": [one]}) for one in (1, 0, 2)))

    rows = [json.loads(row["row"][0]) for row in asyncio.run(go())]
    assert [facts_in(row).block for row in rows] == [1, 0, 2]
    assert beside == [{1}]


@pytest.mark.parametrize(("capacity", "together"), [(64, 5), (2, 4), (None, 2)])
def test_blocks_that_were_given_begin_as_engines_have_room(
    tmp_path: Path, capacity: int | None, together: int
) -> None:
    """As many as there may be, as fill the engine twice, or two where nothing is known of it."""
    loads, inside, most = EngineLoads(), 0, 0

    async def go() -> list[Any]:
        others = asyncio.Barrier(together)  # each waits until so many are inside

        async def make(index: int) -> Tables:
            nonlocal inside, most
            inside += 1
            most = max(most, inside)
            with loads.carrying("engine", capacity or 1, 1):
                await asyncio.wait_for(others.wait(), 60)
            inside -= 1
            return numbers(index)

        admission = Admission(loads, 5) if capacity else None
        made = worker(order_in(tmp_path), Board(), make, admission)
        blocks = range(4 * together)
        return await asyncio.gather(*(made({"block": [one]}) for one in blocks))

    rows = [json.loads(row["row"][0]) for row in asyncio.run(go())]
    assert [facts_in(row).block for row in rows] == list(range(4 * together))
    assert most == together


def test_work_ends_with_its_stage(tmp_path: Path) -> None:
    order, board = order_in(tmp_path), Board()

    async def endless(index: int) -> Tables:
        Attempts(order.generation).end()
        await asyncio.Event().wait()
        return numbers(1)

    [row] = rows_of(worker(order, board, endless), 0)
    assert str(order.generation) in row["over"]
    with pytest.raises(StageOver):
        Attempts(order.generation).begin_try(0)


def test_other_versions_and_other_disks_are_refused(tmp_path: Path) -> None:
    other = order_in(tmp_path, versions=versions_here() | {"torch": "1.0"})
    [row] = rows_of(worker(other, Board(), two), 0)
    assert " for 1.0 where the run was started" in str(unpacked(row["problem"]))
    elsewhere = order_in(tmp_path, root=tmp_path / "elsewhere")
    [row] = rows_of(worker(elsewhere, Board(), two), 0)
    assert "all nodes of the cluster share" in str(unpacked(row["problem"]))
    unshared = order_in(tmp_path, folder=tmp_path / "not here")
    [row] = rows_of(worker(unshared, Board(), two), 0)
    assert "executor.working_dir" in str(unpacked(row["problem"]))


def test_warnings_go_to_the_driver_with_the_next_block(tmp_path: Path) -> None:
    async def warns(index: int) -> Tables:
        logging.getLogger("prefloop.x").warning("block %d is odd", index)
        return numbers(index)

    made = worker(order_in(tmp_path), Board(), warns)
    assert [row["said"] for row in rows_of(made, 2)] == [[[logging.WARNING, "block 2 is odd"]]]
