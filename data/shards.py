"""Parquet shards: written whole or not at all, always with a declared schema."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from data.errors import StorageError

_PART = re.compile(r"part-(\d{5,})\.parquet")


def write_shard(
    table: pa.Table, path: Path, schema: pa.Schema, *, row_group_size: int = 10_000
) -> None:
    """Write ``table`` as ``path`` with exactly ``schema``; a path that exists is complete.

    Raises :class:`StorageError` if the table does not fit the schema, has nulls where the schema
    allows none, or the disk refuses (full, read-only).
    """
    fitted = _fit(table, schema, path)

    def write(temporary: Path) -> None:
        pq.write_table(fitted, temporary, compression="zstd", row_group_size=row_group_size)

    _replace(path, write)


def read_shard(path: Path, schema: pa.Schema, columns: Sequence[str] | None = None) -> pa.Table:
    """The shard at ``path``, or some columns of it. Raises :class:`StorageError`."""
    try:
        table = pq.ParquetFile(path).read(columns=list(columns) if columns else None)
    except (OSError, pa.ArrowException) as error:
        raise StorageError(
            f"{path}: cannot be read ({_first_line(error)}): delete it and run the same command "
            "again, which makes it anew"
        ) from None
    wanted = pa.schema([schema.field(name) for name in (columns or schema.names)])
    if table.column_names != wanted.names:
        try:
            table = table.select(wanted.names)
        except KeyError as error:
            raise StorageError(f"{path}: not a shard of this kind: {_first_line(error)}") from None
    return table.cast(wanted)


def atomic_write_text(path: Path, text: str) -> None:
    """Write ``text`` (UTF-8) as ``path``, whole or not at all. Raises :class:`StorageError`."""
    _replace(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def atomic_write_json(path: Path, value: Any) -> None:
    """Write a JSON value as ``path``, whole or not at all. Raises :class:`StorageError`."""
    atomic_write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


class ShardFolder:
    """A folder of ``part-NNNNN.parquet`` of one schema. Making the object touches no disk."""

    def __init__(self, folder: Path, schema: pa.Schema) -> None:
        self.folder = folder
        self.schema = schema

    def path(self, index: int) -> Path:
        """Where shard ``index`` lies or will lie."""
        return self.folder / f"part-{index:05d}.parquet"

    def exists(self, index: int) -> bool:
        """Whether shard ``index`` was written (and so is complete)."""
        return self.path(index).exists()

    def indices(self) -> list[int]:
        """Indices of the shards that exist, ascending."""
        if not self.folder.is_dir():
            return []
        names = (_PART.fullmatch(path.name) for path in self.folder.iterdir())
        return sorted(int(match.group(1)) for match in names if match)

    def read(self, index: int, columns: Sequence[str] | None = None) -> pa.Table:
        """Shard ``index``, or some columns of it. Raises :class:`StorageError`."""
        return read_shard(self.path(index), self.schema, columns)

    def write(self, index: int, table: pa.Table) -> None:
        """Write shard ``index``. Raises :class:`StorageError`."""
        write_shard(table, self.path(index), self.schema)

    def iter(self, columns: Sequence[str] | None = None) -> Iterator[pa.Table]:
        """The shards one after the other."""
        for index in self.indices():
            yield self.read(index, columns)

    def rows(self) -> int:
        """Rows of all shards, from their footers."""
        return sum(pq.read_metadata(self.path(index)).num_rows for index in self.indices())

    def table(self, columns: Sequence[str] | None = None) -> pa.Table:
        """All shards as one table (empty, with the schema, if there are none)."""
        wanted = [self.schema.field(name) for name in (columns or self.schema.names)]
        empty = pa.schema(wanted).empty_table()
        return pa.concat_tables([empty, *self.iter(columns)])


def _fit(table: pa.Table, schema: pa.Schema, path: Path) -> pa.Table:
    missing = [name for name in schema.names if name not in table.column_names]
    extra = [name for name in table.column_names if name not in schema.names]
    if missing or extra:
        raise StorageError(f"{path}: columns missing: {missing}, not in the schema: {extra}")
    try:
        fitted = table.select(schema.names).cast(schema)
    except (pa.ArrowException, ValueError) as error:
        raise StorageError(f"{path}: does not fit its schema: {_first_line(error)}") from None
    for field in schema:
        if not field.nullable and fitted[field.name].null_count:
            raise StorageError(f"{path}: column {field.name} has nulls, which it must not")
    return fitted


def _replace(path: Path, write: Callable[[Path], Any]) -> None:
    """Write beside ``path``, flush to disk, rename: readers see all of it or nothing."""
    temporary = path.with_name(f".{path.name}.tmp-{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(temporary)
        _flush(temporary)
        temporary.replace(path)
        _flush(path.parent)
    except OSError as error:
        with suppress(OSError):
            temporary.unlink()
        raise StorageError(
            f"{path}: cannot be written: {error.strerror or error}: make room or change the "
            "directory; the same command then goes on from here"
        ) from None


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)
