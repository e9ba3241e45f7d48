"""Shards add up to the same by rows, footers and index, and an index is never of other shards."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from prefloop.data import shards as module
from prefloop.data.schemas import CANDIDATE, DECISION, DROPPED, PROMPT, QUARANTINE, VOTE
from prefloop.data.shards import INDEX, ShardFolder
from prefloop.data.storage.counts import of_values
from tests.helpers.synthetic_run import write_run

MANY = 70
Damage = Callable[[ShardFolder], object]


@pytest.fixture
def folder(tmp_path: Path) -> ShardFolder:
    """Many shards of decisions, each with three times as many pairs as it keeps."""
    first = write_run(tmp_path / "run", rounds=1, blocks=1).round(0).decisions.read(0)
    found = ShardFolder(tmp_path / "decision", DECISION)
    for index in range(MANY):
        found.write(index, first)
    return found


def without_counts(shards: ShardFolder) -> None:
    """Let the shards be of an earlier version."""
    for index in shards.indices():
        table = pq.read_table(shards.path(index)).replace_schema_metadata(None)
        pq.write_table(table, shards.path(index))


@pytest.mark.parametrize(
    ("name", "schema", "expected"),
    [
        ("prompt", PROMPT, {"rows": 16, "source/prompts.jsonl": 16}),
        ("dropped", DROPPED, {"rows": 2, "reason/exact_duplicate": 2}),
        ("quarantine", QUARANTINE, {"rows": 1, "reason/invalid_json": 1}),
        (
            "round-000/decision",
            DECISION,
            {"rows": 48, "kept": 16, "dropped/tie": 16, "dropped/length_ratio": 16},
        ),
        (
            "round-000/vote",
            VOTE,
            {"rows": 144, "votes/verifier": 48, "prompt_tokens": 96 * 80, "completion_tokens": 96},
        ),
        ("round-000/candidate", CANDIDATE, {"rows": 64, "samples": 80, "prompt_tokens": 80 * 15}),
    ],
)
def test_rows_and_footers_say_the_same(
    tmp_path: Path, name: str, schema: pa.Schema, expected: dict[str, int]
) -> None:
    run = write_run(tmp_path / "run", rounds=1, blocks=2)
    shards = ShardFolder(run.root / name, schema)
    by_footers = shards.counts()
    assert expected.items() <= by_footers.items()
    assert b"prefloop.counts" in pq.read_metadata(shards.path(0)).metadata
    without_counts(shards)
    assert shards.counts() == pytest.approx(by_footers)
    assert ShardFolder(tmp_path / "nothing", schema).counts() == {"rows": 0}


def test_rows_of_one_shard_in_two_versions_add_up(folder: ShardFolder) -> None:
    expected = folder.counts()
    old = ShardFolder(folder.folder.with_name("old"), DECISION)
    old.write(3, folder.read(3))
    without_counts(old)
    folder.path(3).write_bytes(old.path(3).read_bytes())
    assert folder.counts() == expected


def test_an_index_takes_the_place_of_all_footers(
    folder: ShardFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = folder.counts()
    assert expected["kept"] * 3 == expected["rows"] == folder.rows() == MANY * 24
    folder.write_index()
    monkeypatch.setattr(module.pq, "read_metadata", None)
    assert folder.counts() == expected
    assert folder.rows() == MANY * 24
    folder.write_index()  # nothing to do
    assert pq.ParquetDataset(folder.folder).files == [
        str(folder.path(index)) for index in folder.indices()
    ]


@pytest.mark.parametrize(
    "change",
    [
        lambda folder: folder.remove([5]),
        lambda folder: folder.replace(5, folder.read(5).slice(3)),
        lambda folder: folder.write(MANY, folder.read(5)),
        lambda folder: folder.path(5).rename(folder.path(MANY + 5)),
        lambda folder: (folder.folder / INDEX).unlink(),
        lambda folder: (folder.folder / INDEX).write_text("[]"),
        lambda folder: (folder.folder / INDEX).write_text("{"),
        lambda folder: (folder.folder / INDEX).write_bytes(b"\xff"),
    ],
)
def test_an_index_of_other_shards_is_not_believed(folder: ShardFolder, change: Damage) -> None:
    folder.write_index()
    change(folder)
    tables = list(folder.iter())
    for _ in range(2):
        found = folder.counts()
        assert found["rows"] == folder.rows() == sum(map(len, tables))
        assert found["kept"] == sum(table["kept"].to_pylist().count(True) for table in tables)
        folder.write_index()
    assert (folder.folder / INDEX).read_text().startswith("{\n")


def test_few_shards_need_no_index(folder: ShardFolder) -> None:
    folder.keep_first(10)
    folder.write_index()
    assert not (folder.folder / INDEX).exists()


def test_values_are_told_by_how_often_they_occur() -> None:
    counts = {"rows": 7.0, "votes/b": 2.0, "votes/a/b": 2.0, "votes/c": 3.0, "votes": 1.0}
    assert list(of_values(counts, "votes").items()) == [("c", 3), ("a/b", 2), ("b", 2)]
