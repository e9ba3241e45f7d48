"""Shards are whole or absent, and always of their declared schema."""

import errno
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from prefloop.data.errors import StorageError
from prefloop.data.schemas import MESSAGES, VOTE
from prefloop.data.shards import (
    ShardFolder,
    atomic_write_json,
    atomic_write_text,
    read_shard,
    write_shard,
)
from prefloop.data.storage import whole_files
from prefloop.data.storage.whole_files import remove_leftovers

_SETPRIV = shutil.which("setpriv")
AS_OTHERS = (
    ["env"]
    if os.geteuid()
    else [_SETPRIV, "--bounding-set=-dac_override,-dac_read_search"]
    if _SETPRIV
    else []
)
"""What a command is led by to be bound by the modes of files, as root is not."""
SCHEMA = pa.schema(
    [
        pa.field("name", pa.string(), nullable=False),
        pa.field("count", pa.int64()),
        pa.field("messages", MESSAGES),
    ]
)


def table(count: int = 3, start: int = 0) -> pa.Table:
    rows = [
        {"name": f"row {i}", "count": i, "messages": [{"role": "user", "content": "hé\0\n"}]}
        for i in range(start, start + count)
    ]
    return pa.Table.from_pylist(rows, SCHEMA)


def test_round_trip_keeps_rows_order_and_schema(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "part-00000.parquet"
    write_shard(table(25), path, SCHEMA, row_group_size=10)
    assert read_shard(path, SCHEMA).equals(table(25))
    assert read_shard(path, SCHEMA).schema.equals(SCHEMA)
    metadata = pq.read_metadata(path)
    assert metadata.num_row_groups == 3
    assert metadata.row_group(0).column(0).compression == "ZSTD"


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(st.text(), st.none() | st.integers(-(2**63), 2**63 - 1)), max_size=30))
@example([])
@example([("", None), ("\0", -(2**63)), ("\ud800", 0)])
@example([("", None), ("\0", -(2**63)), ("\U0010ffff", 2**63 - 1)])
def test_any_rows_survive(tmp_path_factory: pytest.TempPathFactory, rows: list) -> None:
    path = tmp_path_factory.mktemp("shards") / "part-00000.parquet"
    try:
        wanted = pa.Table.from_pylist(
            [{"name": name, "count": count, "messages": None} for name, count in rows], SCHEMA
        )
    except UnicodeEncodeError:  # a lone surrogate is no Arrow string in the first place
        return
    write_shard(wanted, path, SCHEMA)
    assert read_shard(path, SCHEMA).equals(wanted)


def test_columns_are_read_in_the_order_asked_for(tmp_path: Path) -> None:
    folder = ShardFolder(tmp_path, SCHEMA)
    folder.write(0, table())
    assert folder.read(0, ["count", "name"]).column_names == ["count", "name"]
    assert folder.read(0, []).column_names == []
    assert folder.table(["count"]).to_pylist() == [{"count": 0}, {"count": 1}, {"count": 2}]


def test_columns_are_put_in_order_and_cast_where_nothing_is_lost(tmp_path: Path) -> None:
    loose = pa.table(
        {
            "count": pa.array([1, 2], pa.int32()),
            "messages": pa.nulls(2),
            "name": pa.array(["a", "b"], pa.large_string()),
        }
    )
    path = tmp_path / "part-00000.parquet"
    write_shard(loose, path, SCHEMA)
    assert read_shard(path, SCHEMA).to_pylist() == [
        {"name": "a", "count": 1, "messages": None},
        {"name": "b", "count": 2, "messages": None},
    ]


@pytest.mark.parametrize(
    ("columns", "complaint"),
    [
        ({"name": ["a"], "count": [1]}, "columns missing: messages"),
        ({"name": ["a"], "count": [1], "messages": [None], "x": [1]}, "not in the schema: x"),
        ({"name": [None], "count": [1], "messages": [None]}, "column name has nulls"),
        ({"name": ["a"], "count": [1.5], "messages": [None]}, "does not fit its schema"),
        ({"name": ["a"], "count": ["1"], "messages": [None]}, "count is string where int64"),
        ({"name": [1], "count": [1], "messages": [None]}, "name is int64 where string"),
    ],
)
def test_a_table_of_another_schema_is_refused(
    tmp_path: Path, columns: dict, complaint: str
) -> None:
    path = tmp_path / "part-00000.parquet"
    with pytest.raises(StorageError, match=complaint) as caught:
        write_shard(pa.table(columns), path, SCHEMA)
    assert str(path) in str(caught.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("step", ["write_bytes", "fsync", "link", "replace"])
def test_a_full_disk_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    def full(*args: object, **kwargs: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    target = {
        "write_bytes": Path,
        "fsync": whole_files.os,
        "link": whole_files.os,
        "replace": Path,
    }[step]
    monkeypatch.setattr(target, step, full)
    folder = ShardFolder(tmp_path, SCHEMA)
    write = folder.replace if step == "replace" else folder.write
    with pytest.raises(StorageError, match="No space left on device: make room") as caught:
        write(0, table())
    assert str(folder.path(0)) in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_an_interrupt_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(descriptor: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(whole_files.os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        ShardFolder(tmp_path, SCHEMA).write(0, table())
    assert not list(tmp_path.iterdir())


def test_a_failed_rewrite_keeps_the_old_shard(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = ShardFolder(tmp_path, SCHEMA)
    folder.write(0, table(2))
    monkeypatch.setattr(whole_files.os, "fsync", lambda descriptor: os.fstat(-1))
    with pytest.raises(StorageError):
        folder.replace(0, table(5))
    assert folder.rows() == 2


def test_a_killed_writer_leaves_no_shard_and_is_cleaned_up(tmp_path: Path) -> None:
    script = (
        "import os, signal, sys; from pathlib import Path; import pyarrow as pa\n"
        "from prefloop.data import shards; from prefloop.data.storage import whole_files\n"
        "whole_files.os.fsync = lambda fd: os.kill(os.getpid(), signal.SIGKILL)\n"
        "schema = pa.schema([('name', pa.string())])\n"
        "shards.ShardFolder(Path(sys.argv[1]), schema).write(0, pa.table({'name': ['a']}))\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)], cwd=Path(__file__).parent.parent, check=False
    )
    assert result.returncode == -9
    folder = ShardFolder(tmp_path, SCHEMA)
    assert len(list(tmp_path.iterdir())) == 1
    assert not folder.exists(0)
    assert folder.indices() == []
    assert folder.rows() == 0
    assert len(folder.table()) == 0
    remove_leftovers(tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_folder_lists_iterates_and_counts(tmp_path: Path) -> None:
    folder = ShardFolder(tmp_path / "candidate", SCHEMA)
    assert folder.indices() == []
    assert folder.rows() == 0
    assert folder.table().schema.equals(SCHEMA)
    remove_leftovers(tmp_path)
    for index in (100_000, 2, 0):
        folder.write(index, table(index % 7 + 1, start=index))
    assert folder.path(2).name == "part-00002.parquet"
    assert folder.indices() == [0, 2, 100_000]
    assert folder.missing(range(4)) == [1, 3]
    assert [len(part) for part in folder.iter()] == [1, 3, 6]
    assert folder.rows() == len(folder.table()) == 10
    assert folder.table()["count"].to_pylist()[:2] == [0, 2]


@pytest.mark.parametrize("damage", ["truncate", "garbage", "empty"])
def test_a_damaged_shard_is_named_with_a_remedy(tmp_path: Path, damage: str) -> None:
    folder = ShardFolder(tmp_path, SCHEMA)
    folder.write(0, table(1000))
    whole = folder.path(0).read_bytes()
    folder.path(0).write_bytes(
        {"truncate": whole[: len(whole) // 2], "garbage": b"x" * 500, "empty": b""}[damage]
    )
    for read in (lambda: folder.read(0), folder.rows, folder.table):
        with pytest.raises(StorageError, match="delete it and run the same command") as caught:
            read()
        assert str(folder.path(0)) in str(caught.value)
        assert "\n" not in str(caught.value)


def test_a_shard_of_another_noun_is_refused(tmp_path: Path) -> None:
    folder = ShardFolder(tmp_path, SCHEMA)
    pq.write_table(pa.table({"name": ["a"]}), folder.path(0))
    with pytest.raises(StorageError, match="count"):
        folder.read(0)
    with pytest.raises(StorageError, match="no such shard"):
        folder.read(1)


def test_text_and_json_are_written_atomically(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "manifest.json"
    atomic_write_json(path, {"é": [1, None]})
    assert path.read_text(encoding="utf-8") == '{\n  "é": [\n    1,\n    null\n  ]\n}\n'
    monkeypatch.setattr(Path, "replace", lambda *_: os.fstat(-1))
    with pytest.raises(StorageError, match="cannot be written"):
        atomic_write_text(path, "new")
    assert "null" in path.read_text(encoding="utf-8")
    assert len(list(tmp_path.iterdir())) == 1


def test_shards_without_a_column_that_was_added_later_read_with_nulls(tmp_path: Path) -> None:
    older = VOTE.remove(VOTE.get_field_index("finish_reason"))
    row = {field.name: "a" if field.type == pa.string() else 1 for field in older}
    pq.write_table(pa.Table.from_pylist([row, row], older), tmp_path / "part-00000.parquet")
    folder = ShardFolder(tmp_path, VOTE)
    assert folder.table().schema.names == VOTE.names
    assert folder.table()["finish_reason"].to_pylist() == [None, None]
    assert folder.read(0, ["labeler", "finish_reason"]).num_rows == 2
    assert folder.read(0, ["labeler"]).column_names == ["labeler"]
    folder.write(1, pa.Table.from_pylist([row], older))
    assert folder.read(1)["finish_reason"].to_pylist() == [None]
    pq.write_table(folder.read(1).drop(["rationale"]), tmp_path / "part-00002.parquet")
    with pytest.raises(StorageError):
        folder.read(2)


@pytest.mark.skipif(not AS_OTHERS, reason="root reads every file, and setpriv is not here")
@pytest.mark.parametrize(
    "read", ["read_shard(path, VOTE)", "row_count(path)", "read_json_object(path, 'delete it')"]
)
def test_a_file_that_nobody_may_read_is_not_called_damaged(tmp_path: Path, read: str) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"whole")
    path.chmod(0)
    code = (
        "import sys; from pathlib import Path; from prefloop.data.schemas import VOTE; "
        "from prefloop.data.shards import *; from prefloop.data.shards import StorageError\n"
        f"path = Path(sys.argv[1])\ntry:\n    {read}\nexcept StorageError as error: print(error)"
    )
    ended = subprocess.run(
        [*AS_OTHERS, sys.executable, "-c", code, str(path)],
        capture_output=True,
        text=True,
        check=True,
    )
    assert ended.stdout == (
        f"{path}: cannot be read: Permission denied: give yourself the right to read it; do not "
        "delete it, nothing says that it is damaged; run the same command again\n"
    )
