"""What is decided span by span is the same whatever was there before, and whoever decides it."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from benchmarks.scale import make_up, settings
from prefloop.labelers.config import FilterConfig, LengthBalance
from prefloop.labelers.decisions.filters import Cutoff, balance_cutoff
from prefloop.pipeline.executors.block_task import BlockTask, Tables
from prefloop.pipeline.run import spans
from prefloop.pipeline.run.context import RoundContext, RunContext
from prefloop.pipeline.run.round_jury import load_round_jury
from prefloop.pipeline.run.run_dir import RunDir
from prefloop.pipeline.run.spans import SpanUnits, spans_of
from prefloop.pipeline.stages.deciding import deciding_jobs
from prefloop.pipeline.stages.deciding.deciding_jobs import (
    Deciding,
    balance_rows_in,
    balancing_job,
    deciding_job,
    filter_job,
)
from prefloop.pipeline.stages.filter import filter_round
from tests.pipeline.executors.test_ray import shards

BLOCK, BLOCKS = 4, 8


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Spans of two blocks."""
    monkeypatch.setattr(spans, "_PROMPTS", 2 * BLOCK)


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    found = RunDir(tmp_path / "run")
    make_up(found, BLOCK * BLOCKS * 4, block=BLOCK)
    return found


def context_of(run: RunDir) -> RoundContext:
    return RunContext.of(settings(), run).round(0)


def decide(run: RunDir) -> None:
    asyncio.run(filter_round(context_of(run), settings().label, settings().filter))


def without_balance() -> FilterConfig:
    filters = tuple(one for one in settings().filter.filters if not isinstance(one, LengthBalance))
    return settings().filter.model_copy(update={"filters": filters})


class Killed(BaseException):
    """In place of a kill."""


@pytest.mark.parametrize("name", ["decide_blocks", "apply_balance"])
@pytest.mark.parametrize("calls", [0, 1, 3])
def test_a_kill_leaves_the_files_as_they_would_be(
    run: RunDir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, calls: int
) -> None:
    whole = RunDir(tmp_path / "whole")
    make_up(whole, BLOCK * BLOCKS * 4, block=BLOCK)
    decide(whole)
    expected = shards(whole)
    assert len(whole.round(0).decisions.paths()) == BLOCKS // 2
    real, left = getattr(deciding_jobs, name), [calls]

    def dies(*args: object) -> object:
        left[0] -= 1
        if left[0] < 0:
            raise Killed
        return real(*args)

    with monkeypatch.context() as patched:
        patched.setattr(deciding_jobs, name, dies)
        with pytest.raises(Killed):
            decide(run)
    there = [run.round(0).unbalanced, run.round(0).decisions][name == "apply_balance"]
    assert len(there.paths()) == calls
    again: list[object] = []

    def counted(*args: object) -> object:
        again.append(args)
        return real(*args)

    monkeypatch.setattr(deciding_jobs, name, counted)
    decide(run)
    assert len(again) == BLOCKS // 2 - calls, "what was there is not made again"
    assert shards(run) == expected


def test_decisions_that_are_lost_in_the_middle_of_a_span_are_made_again(run: RunDir) -> None:
    decide(run)
    folder = run.round(0)
    whole = folder.decisions.table()
    folder.decisions.remove([2, 5])
    decide(run)
    assert folder.decisions.table().equals(whole)
    assert folder.decisions.indices() == [*range(BLOCKS)]


def test_another_machine_is_told_all_that_decides(run: RunDir) -> None:
    """By the details of the task, as JSON has them."""
    import json

    context, label = context_of(run), settings().label
    jury = load_round_jury(label, context.folder)
    units = SpanUnits.of(spans_of(context.folder, range(BLOCKS)))
    deciding = Deciding(label, settings().filter, jury)

    def done(task: BlockTask, unit: int) -> Tables:
        async def go() -> Tables:
            job = filter_job(context, json.loads(json.dumps(task.details)))
            tables = await (await job.here())(unit)
            assert job.shelf.kept(unit) is None
            assert await job.shelf.keep(unit, tables)
            kept = job.shelf.kept(unit)
            assert kept is not None
            assert kept[0].equals(tables[0])
            return job.shelf.facts(unit, tables).found

        return asyncio.run(go())

    task = deciding_job(context, deciding, units).task
    found = [done(task, unit) for unit in units.spans]
    rows = [balance_rows_in(*one) for one in found]
    assert deciding.balance is not None
    cutoff = balance_cutoff(rows, deciding.balance)
    assert cutoff is not None
    told = balancing_job(context, Cutoff(cutoff.margin, cutoff.pair), units).task
    assert [done(told, unit) for unit in units.spans] == [()] * len(units.spans)
    of_others = context.folder.decisions.table()
    context.folder.decisions.remove()
    decide(run)
    assert context.folder.decisions.table().equals(of_others)
    assert "length_balance" in of_others["reason"].to_pylist()


def test_who_comes_late_changes_nothing(run: RunDir) -> None:
    context, label = context_of(run), settings().label
    units = SpanUnits.of(spans_of(context.folder, range(BLOCKS)))
    deciding = Deciding(label, without_balance(), load_round_jury(label, context.folder))

    async def go() -> None:
        job = deciding_job(context, deciding, units)
        made = await (await job.here())(2)
        await job.shelf.keep(2, made)
        [path] = context.folder.decisions.paths()
        inode = path.stat().st_ino
        await job.shelf.keep(2, made)
        assert [one.stat().st_ino for one in context.folder.decisions.paths()] == [inode]

    asyncio.run(go())
    assert context.folder.decisions.indices() == [2, 3]


def test_a_unit_is_called_by_all_of_its_blocks() -> None:
    details = SpanUnits.of([[0, 1], [2], [3, 5, 7]]).details()
    task = BlockTask("filter", Path(), 0, details)
    assert [task.name_of(unit) for unit in (0, 2, 3)] == [
        "blocks 0 to 1", "block 2", "blocks 3 to 7",
    ]  # fmt: skip
    assert BlockTask("sample", Path(), 0).name_of(4) == "block 4"
