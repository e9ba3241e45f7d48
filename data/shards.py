"""Parquet shards: written whole or not at all, once, and always with a declared schema.

Invariant: a path that exists is complete. What a killed writer leaves behind has a hidden name
that no reader looks at. Who writes a shard that is there changes nothing, unless it asks to replace
it: votes must go on being about the candidates that they were given on.

What the rows of a shard add up to stands in its footer, and what those of a folder do in its index,
so that a run of many shards is known by listing them.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import cache
from itertools import chain
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from prefloop.data import schemas
from prefloop.data.errors import StorageError
from prefloop.data.storage import counts
from prefloop.data.storage.counts import Sums
from prefloop.data.storage.whole_files import (
    Listed,
    LocalFiles,
    Storage,
    is_of_machine,
    put_file,
    refused,
)

ROW_GROUP = 50_000
"""Rows of a shard that are compressed together: all of a usual one, so that it is read in one
piece."""
_BY_THREADS = 10_000
"""Rows above which a file is read by several threads, which cost a small one more than they save.
"""
_BATCH = 50_000
INDEX = "_index.json"
"""File in a folder of many shards: what they add up to. Readers of Parquet folders pass over names
that begin so."""
_MANY = 64
"""Shards from which on a folder gets an index: the footers of fewer are read as fast."""
_COUNTS = "prefloop.counts"
_COUNTED: Mapping[pa.Schema, tuple[Sequence[str], Callable[[pa.Table], Sums]]] = {
    schemas.PROMPT: (["source"], counts.count_sources),
    schemas.CANDIDATE: (counts.CANDIDATE_COLUMNS, counts.count_candidates),
    schemas.VOTE: (["labeler", "preference", *counts.USAGE_COLUMNS], counts.count_votes),
    schemas.DECISION: (["kept", "reason"], counts.count_decisions),
    schemas.QUARANTINE: (["reason"], counts.count_reasons),
    schemas.DROPPED: (["reason"], counts.count_reasons),
}
"""The columns that are counted of a noun, and how."""
_PART = re.compile(r"part-(\d{5,})(?:-(\d{5,}))?\.parquet")
"""The name of a file with one shard, or with those from the first number to the last."""


def write_shard(
    table: pa.Table, path: Path, schema: pa.Schema, *, row_group_size: int = ROW_GROUP
) -> None:
    """Write ``table`` as ``path`` with exactly ``schema``, rows in their order, also in the place
    of one that is there.

    Columns may stand in any order and in a type that casts without loss (int32 to int64, null to
    string, but no text to number). Raises :class:`StorageError` if the table does not fit the
    schema, has nulls where the schema allows none, or the disk refuses (full, read-only).
    """
    put_file(path, _as_parquet(_fit(table, schema, path), row_group_size))


def read_shard(path: Path, schema: pa.Schema, columns: Sequence[str] | None = None) -> pa.Table:
    """The shard at ``path``, or ``columns`` of it in that order; columns that were added to the
    schema since it was written are null.

    Raises :class:`StorageError` for a file that is damaged or of another schema.
    """
    names = schema.names if columns is None else list(columns)
    wanted = pa.schema([schema.field(name) for name in names])
    try:
        with pq.ParquetFile(path) as file:
            there = set(file.schema_arrow.names)
            older = [name for name in _added(schema) if name not in there]
            rows = file.metadata.num_rows
            table = file.read(
                columns=[name for name in names if name not in older],
                use_threads=rows > _BY_THREADS,
            )
        for name in older:
            table = table.append_column(name, pa.nulls(rows))
        return _conformed(table.select(names), wanted)
    except FileNotFoundError:
        raise StorageError(f"{path}: no such shard: run the same command again") from None
    except (OSError, pa.ArrowException, KeyError, ValueError) as error:
        raise _unreadable(path, error) from None


def row_count(path: Path) -> int:
    """Rows of the Parquet file at ``path``, from its footer. Raises :class:`StorageError`."""
    return int(read_footer(path).num_rows)


def atomic_write_text(path: Path, text: str) -> None:
    """Write ``text`` (UTF-8) as ``path``, whole or not at all. Raises :class:`StorageError`."""
    put_file(path, text.encode())


def write_if_changed(path: Path, text: str) -> None:
    """:func:`atomic_write_text`, but for a file that holds just that, which is left as it is."""
    with suppress(OSError):
        if path.read_bytes() == text.encode():
            return
    atomic_write_text(path, text)


def atomic_write_json(path: Path, value: Any) -> None:
    """Write a JSON value as ``path``, whole or not at all. Raises :class:`StorageError`."""
    atomic_write_text(path, as_json(value))


def as_json(value: Any) -> str:
    """``value`` as the JSON files of a run have it."""
    return json.dumps(value, indent=2, ensure_ascii=False) + "\n"


def read_json_object(path: Path, remedy: str) -> dict[str, Any]:
    """The JSON object in ``path``.

    Raises :class:`StorageError` that ends with ``remedy`` where it is damaged, and
    ``FileNotFoundError`` where it is missing.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise
    except (OSError, ValueError, RecursionError) as error:
        if isinstance(error, OSError) and is_of_machine(error):
            raise refused(path, "read", error) from None
        raise damaged(path, _first_line(error), remedy) from None
    if not isinstance(found, dict):
        raise damaged(path, "no JSON object", remedy)
    return found


def damaged(path: Path, fault: str, remedy: str) -> StorageError:
    """What is said of a file that is not what was written."""
    return StorageError(f"{path}: is damaged ({fault}): {remedy}")


class ShardFolder:
    """A folder of ``part-NNNNN.parquet`` of one schema. Making the object touches no disk.

    What lies there ``for_now`` only, until something else is made of it, is written as fast as can
    be: it is larger, and what it adds up to is not kept with it.
    """

    def __init__(self, folder: Path, schema: pa.Schema, *, for_now: bool = False) -> None:
        self.folder = folder
        self.schema = schema
        self.for_now = for_now
        self.files: Storage = LocalFiles(folder)

    def path(self, index: int) -> Path:
        """Where shard ``index`` lies or will lie."""
        return self.folder / file_of(index)

    def exists(self, index: int) -> bool:
        """Whether shard ``index`` was written (and so is complete)."""
        return self.path(index).exists()

    def indices(self) -> list[int]:
        """Indices of the shards that exist, ascending."""
        return sorted(set(chain.from_iterable(self._listed().values())))

    def paths(self) -> list[Path]:
        """The files that the shards are in, in the order of these."""
        return [self.folder / file.name for file in self._listed()]

    def missing(self, indices: Iterable[int]) -> list[int]:
        """Those of ``indices`` whose shards are yet to be written."""
        there = set(self.indices())
        return [index for index in indices if index not in there]

    def read(self, index: int, columns: Sequence[str] | None = None) -> pa.Table:
        """Shard ``index``, or some columns of it. Raises :class:`StorageError`."""
        return read_shard(self.path(index), self.schema, columns)

    def write(self, index: int, table: pa.Table) -> bool:
        """Write shard ``index``, unless it is there: then that stays, and false is returned. Who
        comes late goes on with what is there. Raises :class:`StorageError`."""
        return self.files.create(file_of(index), self._encoded(table, self.path(index)))

    def replace(self, index: int, table: pa.Table) -> None:
        """Write shard ``index``, also in the place of one that is there: by whoever holds the run,
        of what nothing is built on, or is made anew too. Raises :class:`StorageError`."""
        self.files.put(file_of(index), self._encoded(table, self.path(index)))

    def iter(
        self, columns: Sequence[str] | None = None, indices: Iterable[int] | None = None
    ) -> Iterator[pa.Table]:
        """The shards, or some, one after the other. Raises :class:`StorageError`."""
        for index in self.indices() if indices is None else indices:
            yield self.read(index, columns)

    def batches(
        self, columns: Sequence[str], indices: Iterable[int] | None = None
    ) -> Iterator[pa.Table]:
        """The shards, or some, in their order, as many together as have about 50,000 rows: what is
        counted of them costs as much for a small table as for a large one. Raises
        :class:`StorageError`."""
        gathered: list[pa.Table] = []
        for table in self.iter(columns, indices):
            gathered.append(table)
            if sum(map(len, gathered)) >= _BATCH:
                yield pa.concat_tables(gathered).combine_chunks()
                gathered.clear()
        if gathered:
            yield pa.concat_tables(gathered).combine_chunks()

    def together(self, indices: Sequence[int], columns: Sequence[str] | None = None) -> pa.Table:
        """The shards ``indices``, at least one, as one table, of one piece. Raises
        :class:`StorageError`."""
        return self.gathered(indices, columns)[0]

    def gathered(
        self, indices: Sequence[int], columns: Sequence[str] | None = None, *, lenient: bool = False
    ) -> tuple[pa.Table, list[int]]:
        """:meth:`together`, and how many rows each of the shards has; ``lenient``: one that is not
        there is empty. Raises :class:`StorageError`."""
        pieces = list(self._pieces(indices, columns, lenient=lenient))
        rows = [count for _, counts in pieces for count in counts]
        return pa.concat_tables([table for table, _ in pieces]).combine_chunks(), rows

    def rows(self, indices: Sequence[int] | None = None) -> int:
        """Rows of all shards, or of some, from the index or their footers. Raises
        :class:`StorageError`."""
        if indices is not None:
            return sum(map(self._rows_of, indices))
        listed = self._listed()
        known = self._indexed(listed)
        if known is not None:
            return int(known["rows"])
        return sum(row_count(self.folder / file.name) for file in listed)

    def counts(self) -> Sums:
        """What the rows of all shards add up to, the number of them (``rows``) included: from the
        index or their footers, or where an earlier version wrote none, from the rows. Raises
        :class:`StorageError`."""
        listed = self._listed()
        known = self._indexed(listed)
        return self._added_up(listed) if known is None else known

    def write_index(self) -> None:
        """Keep :meth:`counts`, where there are many shards and it is not kept already: once all are
        written, by whoever holds the run. Raises :class:`StorageError`."""
        listed = self._listed()
        if len(listed) < _MANY or self._indexed(listed) is not None:
            return
        kept = {"listing": _digest(listed), "counts": self._added_up(listed)}
        self.files.put(INDEX, as_json(kept).encode())

    def remove(self, indices: Sequence[int] | None = None) -> None:
        """Remove some shards, or all, the last one first; those that are not there are no fault."""
        for index in sorted(self.indices() if indices is None else indices, reverse=True):
            self.files.delete(file_of(index))

    def keep_first(self, count: int) -> None:
        """Remove the shards from ``count`` on: of an earlier writing that had more."""
        self.remove([index for index in self.indices() if index >= count])

    def table(self, columns: Sequence[str] | None = None) -> pa.Table:
        """All shards as one table (empty, with the schema, if there are none)."""
        names = self.schema.names if columns is None else columns
        empty = pa.schema([self.schema.field(name) for name in names]).empty_table()
        return pa.concat_tables([empty, *self.iter(columns)])

    def _pieces(
        self, indices: Sequence[int], columns: Sequence[str] | None, *, lenient: bool
    ) -> Iterator[tuple[pa.Table, list[int]]]:
        """The shards ``indices``, as many at once as are read at once, and the rows of each."""
        for index in indices:
            if lenient and not self.exists(index):
                table = self.schema.empty_table().select(columns or self.schema.names)
            else:
                table = self.read(index, columns)
            yield table, [len(table)]

    def _rows_of(self, index: int) -> int:
        return row_count(self.path(index))

    def _encoded(self, table: pa.Table, path: Path, **about: str) -> memoryview:
        """The file ``path`` of ``table``, with more ``about`` it in its footer."""
        fitted = _fit(table, self.schema, path)
        if self.schema in _COUNTED and not self.for_now:
            _, count = _COUNTED[self.schema]
            about[_COUNTS] = json.dumps(count(fitted))
        return _as_parquet(
            fitted.replace_schema_metadata(about) if about else fitted,
            compression="none" if self.for_now else "zstd",
        )

    def _listed(self) -> dict[Listed, range]:
        """The files of shards and which are in them, ascending."""
        found = ((shards_in(file.name), file) for file in self.files.list())
        alone = sorted((shards[0], file) for shards, file in found if len(shards) == 1)
        return {file: range(index, index + 1) for index, file in alone}

    def _indexed(self, listed: Collection[Listed]) -> Sums | None:
        """What the index says, where it is of these very shards."""
        if len(listed) < _MANY:
            return None
        try:
            kept = json.loads(self.files.get(INDEX))
            found: Sums = kept["counts"]
            return found if kept["listing"] == _digest(listed) and "rows" in found else None
        except (FileNotFoundError, StorageError, ValueError, KeyError, TypeError):
            return None

    def _added_up(self, listed: Mapping[Listed, range]) -> Sums:
        total: Sums = {"rows": 0}
        uncounted: list[int] = []
        for file, shards in listed.items():
            footer = read_footer(self.folder / file.name)
            total["rows"] += footer.num_rows
            if self.schema in _COUNTED:
                kept = (footer.metadata or {}).get(_COUNTS.encode())
                if kept is None:
                    uncounted += shards
                else:
                    counts.add(total, json.loads(kept))
        if uncounted:
            columns, count = _COUNTED[self.schema]
            for table in self.batches(columns, uncounted):
                counts.add(total, count(table))
        return total


def lacks_columns(path: Path, schema: pa.Schema) -> bool:
    """Whether the shard at ``path`` was written before columns were added to ``schema``; false
    where it cannot be read."""
    try:
        names = pq.read_schema(path).names
    except (OSError, pa.ArrowException):
        return False
    return any(name not in names for name in _added(schema))


def read_footer(path: Path) -> pq.FileMetaData:
    """What stands in the footer of the Parquet file at ``path``. Raises :class:`StorageError`."""
    try:
        return pq.read_metadata(path)
    except (OSError, pa.ArrowException) as error:
        raise _unreadable(path, error) from None


def _digest(listed: Iterable[Listed]) -> str:
    """A hash of which files there are, and of which writing each is."""
    lines = "\n".join("\t".join(map(str, file)) for file in listed)
    return hashlib.blake2b(lines.encode(), digest_size=16).hexdigest()


def shards_in(name: str) -> range:
    """The shards in the file ``name``, by that; none where it is not one of shards."""
    match = _PART.fullmatch(name)
    if match is None:
        return range(0)
    first = int(match[1])
    return range(first, int(match[2] or first) + 1)


def file_of(first: int, last: int | None = None) -> str:
    """The name of the file with one shard, or with those up to ``last``."""
    return f"part-{first:05d}.parquet" if last is None else f"part-{first:05d}-{last:05d}.parquet"


def _as_parquet(
    table: pa.Table, row_group_size: int = ROW_GROUP, *, compression: str = "zstd"
) -> memoryview:
    file = pa.BufferOutputStream()
    # Nearly all columns are ids, numbers and long texts. A dictionary only makes them larger, and
    # nobody asks what the least and the greatest id or text is.
    pq.write_table(
        table,
        file,
        compression=compression,
        use_dictionary=False,
        write_statistics=[
            field.name
            for field in table.schema
            if not pa.types.is_nested(field.type) and not _is_text(field.type)
        ],
        row_group_size=row_group_size,
    )
    return memoryview(file.getvalue())


def _fit(table: pa.Table, schema: pa.Schema, path: Path) -> pa.Table:
    for name in _added(schema):
        if name not in table.column_names:
            table = table.append_column(name, pa.nulls(len(table)))
    missing = [name for name in schema.names if name not in table.column_names]
    extra = [name for name in table.column_names if name not in schema.names]
    if missing or extra:
        raise StorageError(
            f"{path}: columns missing: {', '.join(missing) or 'none'}; "
            f"not in the schema: {', '.join(extra) or 'none'}"
        )
    for field in schema:
        column = table[field.name]
        if column.null_count and not field.nullable:
            raise StorageError(f"{path}: column {field.name} has nulls, which it must not")
        if _is_text(column.type) != _is_text(field.type) and not pa.types.is_null(column.type):
            raise StorageError(
                f"{path}: column {field.name} is {column.type} where {field.type} is declared"
            )
    try:
        return _conformed(table.select(schema.names), schema)
    except (pa.ArrowException, ValueError) as error:
        raise StorageError(f"{path}: does not fit its schema: {_first_line(error)}") from None


def _conformed(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """``table`` as one of ``schema``, whose columns it has. Where it has their types too, as most
    have, nothing is cast: that costs a small table as much as reading it."""
    if table.schema.types != schema.types:
        return table.cast(schema)
    for field, column in zip(schema, table.columns, strict=True):
        if not field.nullable and column.null_count:
            raise ValueError(f"column {field.name} has nulls, which it must not")
    return pa.Table.from_arrays(table.columns, schema=schema)


@cache
def _added(schema: pa.Schema) -> list[str]:
    return [field.name for field in schema if field.metadata and b"added" in field.metadata]


def _is_text(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    return bool(
        pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)
    )


def _unreadable(path: Path, error: Exception) -> StorageError:
    if isinstance(error, OSError) and is_of_machine(error):
        return refused(path, "read", error)
    return StorageError(
        f"{path}: cannot be read ({_first_line(error)}): delete it and run the same command "
        "again (in a run's directory: `prefloop run`), which makes it anew"
    )


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)
