"""Shards: complete or absent, with the declared schema, whatever happens while one is written."""

import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data.errors import StorageError
from data.shards import ShardFolder, atomic_write_json, write_shard

SCHEMA = pa.schema([pa.field("name", pa.string(), nullable=False), pa.field("n", pa.int32())])


def table(*names: str | None) -> pa.Table:
    return pa.table({"n": list(range(len(names))), "name": list(names)})


def test_a_shard_reads_back_as_declared_in_order(tmp_path: Path) -> None:
    folder = ShardFolder(tmp_path / "noun", SCHEMA)
    assert (folder.indices(), folder.rows(), len(folder.table())) == ([], 0, 0)
    folder.write(2, table("c", "d"))
    folder.write(0, table("a", "b"))
    assert folder.indices() == [0, 2]
    assert folder.exists(2)
    assert not folder.exists(1)
    assert folder.rows() == 4
    assert folder.table()["name"].to_pylist() == ["a", "b", "c", "d"]
    assert folder.table().schema == SCHEMA
    assert folder.read(0, ["n"]).schema == pa.schema([SCHEMA.field("n")])
    stored = pq.ParquetFile(folder.path(0))
    assert stored.metadata.row_group(0).column(0).compression == "ZSTD"


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (table("a", None), "does not fit its schema"),
        (pa.table({"name": ["a"]}), "columns missing: \\['n'\\]"),
        (table("a").append_column("x", [[1]]), "not in the schema: \\['x'\\]"),
        (pa.table({"name": ["a"], "n": ["many"]}), "does not fit its schema"),
    ],
)
def test_what_does_not_fit_the_schema_is_refused(
    bad: pa.Table, message: str, tmp_path: Path
) -> None:
    with pytest.raises(StorageError, match=message):
        write_shard(bad, tmp_path / "part-00000.parquet", SCHEMA)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("broken", ["fsync", "replace"])
def test_a_disk_that_refuses_leaves_no_shard_and_a_clear_line(
    broken: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    folder = ShardFolder(tmp_path, SCHEMA)
    folder.write(0, table("old"))
    monkeypatch.setattr(os if broken == "fsync" else Path, broken, full)
    with pytest.raises(StorageError, match="No space left on device") as caught:
        folder.write(1, table("new"))
    assert "part-00001.parquet" in str(caught.value)
    assert folder.indices() == [0]
    assert [path.name for path in tmp_path.iterdir()] == ["part-00000.parquet"]


def test_a_full_disk_for_real(tmp_path: Path) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full here")
    link = tmp_path / "x.json"
    # Whatever is written through the temporary name lands on a device that is always full.
    temporary = link.with_name(f".{link.name}.tmp-{os.getpid()}")
    temporary.symlink_to("/dev/full")
    with pytest.raises(StorageError, match="No space left on device"):
        atomic_write_json(link, {"a": "b" * 100_000})
    assert not link.exists()


def test_leftovers_of_a_killed_writer_are_no_shards(tmp_path: Path) -> None:
    folder = ShardFolder(tmp_path, SCHEMA)
    (tmp_path / ".part-00000.parquet.tmp-123").write_bytes(b"half")
    assert folder.indices() == []
    assert not folder.exists(0)


def test_a_corrupt_shard_is_named_with_what_to_do(tmp_path: Path) -> None:
    folder = ShardFolder(tmp_path, SCHEMA)
    folder.path(0).write_bytes(b"PAR1 this is no Parquet file")
    with pytest.raises(StorageError, match=r"part-00000\.parquet.*delete it and run"):
        folder.read(0)
