"""The dataset's files are made volume by volume; a volume that is done is not made again, unless
what it is made of changed."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from benchmarks.scale import make_up, settings
from prefloop.data.schemas import TRIPLE
from prefloop.pipeline.executors.attempts import StageOver
from prefloop.pipeline.run import spans
from prefloop.pipeline.run.context import RoundContext, RunContext
from prefloop.pipeline.run.run_dir import RunDir
from prefloop.pipeline.run.spans import SpanUnits
from prefloop.pipeline.stages.dataset import volumes
from prefloop.pipeline.stages.dataset.layout import PartFiles
from prefloop.pipeline.stages.dataset.volumes import Volumes, WhatIsWritten, volumes_job
from prefloop.pipeline.stages.filter import filter_round
from prefloop.pipeline.stages.write import write_round
from tests.pipeline.executors.test_ray import shards

BLOCK, BLOCKS = 4, 9
SHARE = 0.3


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Spans of two blocks, volumes of two spans: three volumes, the last of one block."""
    monkeypatch.setattr(spans, "_PROMPTS", 2 * BLOCK)
    monkeypatch.setattr(volumes, "SPANS", 2)


def decided(root: Path) -> RunDir:
    run, config = RunDir(root), settings()
    make_up(run, BLOCK * BLOCKS * 4, block=BLOCK)
    asyncio.run(filter_round(context_of(run), config.label, config.filter))
    return run


def context_of(run: RunDir) -> RoundContext:
    return RunContext.of(settings(), run).round(0)


def write(run: RunDir, share: float = SHARE) -> None:
    asyncio.run(write_round(context_of(run), test_share=share, unpaired=True))


def staged(run: RunDir) -> dict[Path, int]:
    """The files that are not in the dataset yet, and which one each is."""
    found = run.round(0).root.glob(".dataset/*/*/*/*.parquet")
    return {path.relative_to(run.round(0).root): path.stat().st_ino for path in found}


class Killed(BaseException):
    """In place of a kill."""


@pytest.fixture
def killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[RunDir]:
    """A run that was killed in its second volume, when its first span was added."""
    run = decided(tmp_path / "killed")
    add, left = PartFiles.add, [3]

    def dies(files: PartFiles, table: pa.Table) -> None:
        if files.folder == "data":
            left[0] -= 1
            if left[0] < 0:
                raise Killed
        add(files, table)

    with monkeypatch.context() as patched:
        patched.setattr(PartFiles, "add", dies)
        with pytest.raises(Killed):
            write(run)
    assert not run.dataset.exists()
    assert {path.parts[2][:5] for path in staged(run)} == {"00000"}
    return run


@pytest.fixture
def expected(tmp_path: Path) -> dict[str, bytes]:
    run = decided(tmp_path / "expected")
    write(run)
    assert not [*run.root.rglob(".dataset")]
    assert len([*run.dataset.glob("candidates/train-*")]) == 3
    return shards(run)


def test_the_rows_are_in_the_order_of_their_blocks(expected: dict[str, bytes]) -> None:
    for folder, noun in (("data", "triple"), ("candidates", "candidate"), ("votes", "vote")):
        of_rows = [
            pq.read_table(pa.BufferReader(content), columns=["prompt_id"])["prompt_id"].to_pylist()
            for name, content in sorted(expected.items())
            if name.startswith(f"dataset/{folder}/train-")
        ]
        found = [one for names in of_rows for one in names]
        train = {*found}
        whole = [
            one
            for name, content in sorted(expected.items())
            if name.startswith(f"round-000/{noun}/")
            for one in pq.read_table(pa.BufferReader(content))["prompt_id"].to_pylist()
        ]
        assert found == [one for one in whole if one in train]


def test_a_volume_that_is_done_is_not_made_again(
    killed: RunDir, expected: dict[str, bytes]
) -> None:
    before = staged(killed)
    assert before
    triples = {path.name: path.stat().st_ino for path in killed.round(0).triples.paths()}
    write(killed)
    assert shards(killed) == expected
    inodes = {path.stat().st_ino for path in killed.dataset.rglob("*.parquet")}
    assert {*before.values()} <= inodes
    now = {path.name: path.stat().st_ino for path in killed.round(0).triples.paths()}
    assert {name: now[name] for name in triples} == triples


def test_a_volume_of_other_settings_or_decisions_is_made_again(
    killed: RunDir, expected: dict[str, bytes], tmp_path: Path
) -> None:
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(PartFiles, "add", None)
        with pytest.raises(TypeError):
            write(killed, share=0.0)
    assert staged(killed) == {}
    write(killed)
    assert shards(killed) == expected
    folder = killed.round(0)
    folder.decisions.replace(0, folder.decisions.read(0))  # as new votes have it decided again
    made = Volumes.of(context_of(killed), WhatIsWritten(SHARE), range(BLOCKS))
    folder.decisions.replace(0, folder.decisions.read(0))
    assert Volumes.of(context_of(killed), WhatIsWritten(SHARE), range(BLOCKS)).key != made.key


@pytest.mark.parametrize("lost", ["triples", "file"])
def test_a_volume_of_which_something_is_lost_is_made_again(
    killed: RunDir, expected: dict[str, bytes], lost: str
) -> None:
    if lost == "triples":
        killed.round(0).triples.remove([1])
    else:
        next(killed.round(0).root.glob(".dataset/*/*/*/*.parquet")).unlink()
    write(killed)
    assert shards(killed).keys() - expected.keys() <= {
        f"round-000/triple/part-{index:05d}.parquet" for index in (0, 1)
    }
    for name, content in expected.items():
        if not name.startswith("round-000/triple/"):
            assert shards(killed)[name] == content
    context = context_of(killed)
    assert context.folder.triples.table().equals(
        pa.concat_tables([
            TRIPLE.empty_table(),
            *(pq.read_table(pa.BufferReader(expected[name]), schema=TRIPLE)
              for name in sorted(expected) if name.startswith("round-000/triple/")),
        ])
    )  # fmt: skip


def test_who_comes_late_changes_nothing(tmp_path: Path) -> None:
    """Of two who made a volume the first counts; and when all is over, no shard is written."""
    run = decided(tmp_path / "run")
    made = Volumes.of(context_of(run), WhatIsWritten(SHARE), range(BLOCKS))
    made.missing()

    async def make(is_over: Any = lambda: False) -> tuple[Any, tuple[pa.Table, ...]]:
        job = volumes_job(made, is_over)
        return job.shelf, await (await job.here())(4)

    async def both() -> list[bool]:
        (shelf, first), (_, second) = await make(), await make()
        assert first[0]["path"] != second[0]["path"]
        kept = [await shelf.keep(4, first), await shelf.keep(4, second)]
        assert shelf.kept(4) == first
        return kept

    assert asyncio.run(both()) == [True, False]
    run.round(0).triples.remove()
    with pytest.raises(StageOver):
        asyncio.run(make(lambda: True))
    assert run.round(0).triples.indices() == []


def test_units_are_told_as_bounds_of_their_blocks() -> None:
    units = SpanUnits.of([[0, 1, 2], [3, 5, 6], [9]], {1, 2, 9}, of_unit=2)
    assert units.details() == {"units": [[[0, 2], [3, 3, 5, 6]], [[9, 9]]], "there": [1, 2, 9, 9]}
    read = SpanUnits.read(units.details())
    assert read == units
    assert [*read.spans] == [0, 9]
    assert read.blocks(0) == [0, 1, 2, 3, 5, 6]
    assert read.missing(0) == [0, 3, 5, 6]
    assert read.missing(9) == []
