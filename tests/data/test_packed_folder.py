"""Shards that share a file are read, counted, replaced and removed like those with their own."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prefloop.data.errors import StorageError
from prefloop.data.packed_folder import PackedFolder
from prefloop.data.schemas import DECISION
from prefloop.data.shards import ShardFolder
from prefloop.data.storage import commits

SCHEMA = pa.schema([pa.field("number", pa.int64(), nullable=False), ("text", pa.string())])


def table(*numbers: int) -> pa.Table:
    return pa.table({"number": numbers, "text": [str(one) for one in numbers]}, SCHEMA)


def write(shards: PackedFolder, tables: dict[int, pa.Table]) -> None:
    order = sorted(tables)
    parts = [tables[index] for index in order]
    shards.write_together(
        order, pa.concat_tables([parts[0].slice(0, 0), *parts]), [*map(len, parts)]
    )


def names(shards: ShardFolder) -> list[str]:
    return [path.name for path in shards.paths()]


def test_shards_without_a_gap_share_a_file(tmp_path: Path) -> None:
    shards = PackedFolder(tmp_path, SCHEMA)
    write(shards, {0: table(1, 2), 1: table(), 2: table(3), 5: table(4), 7: table(5)})
    assert names(shards) == ["part-00000-00002.parquet", "part-00005.parquet", "part-00007.parquet"]
    assert shards.indices() == [0, 1, 2, 5, 7]
    assert shards.missing(range(8)) == [3, 4, 6]
    for index, rows in {0: [1, 2], 1: [], 2: [3], 5: [4], 7: [5]}.items():
        assert shards.exists(index)
        assert shards.rows([index]) == len(rows)
        assert shards.read(index)["number"].to_pylist() == rows
        assert shards.read(index, ["text"]).column_names == ["text"]
    assert not shards.exists(3)
    assert shards.rows() == 5
    assert shards.table()["number"].to_pylist() == [1, 2, 3, 4, 5]
    assert shards.together([1, 2, 5])["number"].to_pylist() == [3, 4]


def test_shards_are_gathered_from_whatever_files_they_are_in(tmp_path: Path) -> None:
    shards = PackedFolder(tmp_path, SCHEMA)
    write(shards, {0: table(1, 2), 1: table(), 2: table(3), 4: table(4), 5: table(5, 6)})
    shards.write(7, table(7))
    for wanted in ([0, 1, 2, 4, 5, 7], [1, 2, 4], [7, 0], [5], [2, 5, 4]):
        found, rows = shards.gathered(wanted, ["number"])
        alone = [shards.read(index)["number"].to_pylist() for index in wanted]
        assert rows == [*map(len, alone)]
        assert found["number"].to_pylist() == [one for rows in alone for one in rows]
        assert found["number"].num_chunks <= 1
    found, rows = shards.gathered([2, 3, 4, 6, 8], lenient=True)
    assert (found["number"].to_pylist(), rows) == ([3, 4], [1, 0, 1, 0, 0])
    with pytest.raises(StorageError, match="part-00003"):
        shards.gathered([2, 3])


def test_what_is_there_for_now_is_not_compressed(tmp_path: Path) -> None:
    kept, for_now = (
        PackedFolder(tmp_path / "a", SCHEMA),
        PackedFolder(tmp_path / "b", SCHEMA, for_now=True),
    )
    for shards, expected in ((kept, "ZSTD"), (for_now, "UNCOMPRESSED")):
        write(shards, {0: table(1), 1: table(2)})
        [path] = shards.paths()
        assert pq.read_metadata(path).row_group(0).column(0).compression == expected
        assert shards.table()["number"].to_pylist() == [1, 2]


def test_another_object_sees_what_was_written_since_it_looked(tmp_path: Path) -> None:
    mine, theirs = PackedFolder(tmp_path, SCHEMA), PackedFolder(tmp_path, SCHEMA)
    write(mine, {0: table(1), 1: table(2)})
    assert theirs.read(1)["number"].to_pylist() == [2]
    mine.replace(1, table(8, 9))
    assert theirs.read(1)["number"].to_pylist() == [8, 9]
    assert theirs.read(0)["number"].to_pylist() == [1]
    mine.remove()
    write(mine, {0: table(3), 1: table(4)})
    assert theirs.read(1)["number"].to_pylist() == [4]


def test_what_is_there_stays(tmp_path: Path) -> None:
    shards = PackedFolder(tmp_path, SCHEMA)
    write(shards, {0: table(1), 1: table(2)})
    assert not shards.write(1, table(9))
    assert shards.write(2, table(3))
    assert shards.table()["number"].to_pylist() == [1, 2, 3]


def test_a_shard_gets_its_own_file(tmp_path: Path) -> None:
    shards = PackedFolder(tmp_path, SCHEMA)
    write(shards, {0: table(1), 1: table(2)})
    path = shards.own_file(1)
    assert path.name == "part-00001.parquet"
    assert ShardFolder(tmp_path, SCHEMA).table()["number"].to_pylist() == [1, 2]
    assert shards.own_file(1) == path


def test_counts_are_those_of_the_rows(tmp_path: Path) -> None:
    rows = {name: pa.nulls(3, DECISION.field(name).type) for name in DECISION.names}
    for field in DECISION:
        if not field.nullable:
            filled = {pa.string(): "x", pa.bool_(): True}.get(field.type, 0)
            is_list = pa.types.is_list(field.type)
            rows[field.name] = pa.array([[] if is_list else filled] * 3, field.type)
    rows["kept"] = pa.array([True, False, False])
    rows["reason"] = pa.array([None, "tie", "tie"])
    decisions = pa.table(rows, DECISION)
    alone, packed = ShardFolder(tmp_path / "a", DECISION), PackedFolder(tmp_path / "p", DECISION)
    for index in range(3):
        alone.write(index, decisions.slice(index))
    write(packed, {index: decisions.slice(index) for index in range(3)})
    assert len(packed.paths()) == 1
    assert packed.counts() == alone.counts()


@pytest.mark.parametrize("commit", range(1, 6))
def test_a_kill_while_shards_are_parted_loses_none(tmp_path: Path, commit: int) -> None:
    shards = PackedFolder(tmp_path, SCHEMA)
    write(shards, {index: table(index) for index in range(5)})
    left = commit

    def kill(_: Path) -> None:
        nonlocal left
        left -= 1
        if not left:
            raise KeyboardInterrupt

    with commits.told_of_commits(kill), pytest.raises(KeyboardInterrupt):
        shards.replace(2, table(22))
    again = PackedFolder(tmp_path, SCHEMA)
    there = again.indices()
    assert set(there) >= {0, 1, 3, 4}
    for index in there:
        assert again.read(index)["number"].to_pylist() in ([index], [22])
    assert again.rows() == sum(again.rows([index]) for index in there)
    again.replace(2, table(22))
    assert again.table()["number"].to_pylist() == [0, 1, 22, 3, 4]
    assert names(again) == [f"part-{index:05d}.parquet" for index in range(5)]


def test_a_file_that_does_not_say_where_its_shards_begin_is_damaged(tmp_path: Path) -> None:
    PackedFolder(tmp_path, SCHEMA).write(0, table(1, 2))
    (tmp_path / "part-00000.parquet").rename(tmp_path / "part-00000-00001.parquet")
    shards = PackedFolder(tmp_path, SCHEMA)
    with pytest.raises(StorageError, match=r"part-00000-00001\.parquet: is damaged"):
        shards.read(0)
    shards.remove()
    assert shards.indices() == []


SHARDS = st.dictionaries(
    st.integers(0, 6), st.lists(st.integers(0, 99), max_size=3), min_size=1, max_size=7
)
DOING = st.one_of(
    st.tuples(st.just("together"), SHARDS),
    st.tuples(st.just("replace"), SHARDS),
    st.tuples(st.just("remove"), SHARDS),
    st.tuples(st.just("own"), SHARDS),
)


@settings(max_examples=40, deadline=None)
@given(st.lists(DOING, max_size=6))
def test_it_holds_what_a_dictionary_would(
    tmp_path_factory: pytest.TempPathFactory, steps: list
) -> None:
    folder = tmp_path_factory.mktemp("packed")
    shards, kept = PackedFolder(folder, SCHEMA), dict[int, list[int]]()
    for what, given_shards in steps:
        if what == "together":
            new = {index: rows for index, rows in given_shards.items() if index not in kept}
            if not new:
                continue
            write(shards, {index: table(*rows) for index, rows in new.items()})
            kept |= new
        elif what == "replace":
            for index, rows in given_shards.items():
                shards.replace(index, table(*rows))
            kept |= given_shards
        elif what == "remove":
            shards.remove(list(given_shards))
            kept = {index: rows for index, rows in kept.items() if index not in given_shards}
        else:
            for index in given_shards.keys() & kept.keys():
                assert ShardFolder(folder, SCHEMA).path(index) == shards.own_file(index)
        for look in (shards, PackedFolder(folder, SCHEMA)):
            assert look.indices() == sorted(kept)
            assert {i: look.read(i)["number"].to_pylist() for i in kept} == kept
            assert look.rows() == sum(map(len, kept.values()))
