"""Shards of small units of work in files of many.

A unit of work, a block of prompts, is small, so that a kill repeats little. A file of it is small
too, and opening and committing it costs more than its rows do. Where the shards of many blocks are
made at once, they share a file, ``part-00000-00031.parquet``, which has them one after the other;
where each begins stands in its footer. They are read like those with a file of their own.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from itertools import accumulate
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa

from prefloop.data.shards import (
    ShardFolder,
    damaged,
    file_of,
    read_footer,
    read_shard,
    shards_in,
)
from prefloop.data.storage.whole_files import Listed, put_file

_MARK = ".together"
"""Written again after each file of many shards, before files of its shards alone are removed."""
_ROWS = "prefloop.rows"
"""In a footer: how many rows each of the file's shards has, in their order, as a JSON list."""

_Version = tuple[int, int, int]


class _Read(NamedTuple):
    """Columns of a file as they were read last."""

    name: str
    version: _Version
    columns: tuple[str, ...]
    table: pa.Table


class PackedFolder(ShardFolder):
    """A folder of shards of which several can be in one file. Who writes to it holds the run.

    No shard is in two files, but for a moment in which they are put together or parted, and where a
    writer came late: then the file of many counts. Which those are is looked up once, and again
    where another process wrote one since, which a hidden file says. What was read last of them is
    kept, so that a file is read once by who asks for its shards one after the other.
    """

    def __init__(self, folder: Path, schema: pa.Schema, *, for_now: bool = False) -> None:
        super().__init__(folder, schema, for_now=for_now)
        self._shared: dict[int, str] | None = None
        self._seen: _Version | None = None
        self._last: _Read | None = None

    def exists(self, index: int) -> bool:
        """See :class:`ShardFolder`."""
        return self._shared_by(index) is not None or super().exists(index)

    def sizes(self) -> dict[int, int]:
        """The bytes on disk of each shard, by its index; of those in one file, as many each."""
        return {
            index: file.size // len(shards)
            for file, shards in self._listed().items()
            for index in shards
        }

    def read(self, index: int, columns: Sequence[str] | None = None) -> pa.Table:
        """See :class:`ShardFolder`."""
        name = self._file_of_many(index)
        return super().read(index, columns) if name is None else self._part_of(name, index, columns)

    def write(self, index: int, table: pa.Table) -> bool:
        """See :class:`ShardFolder`."""
        if self._shared_by(index) is not None or not super().write(index, table):
            return False
        if self._shared_by(index) is None:
            return True
        # All were put together while this process was between the two lines, for however long.
        self.files.delete(file_of(index))
        return False

    def write_together(self, indices: Sequence[int], table: pa.Table, rows: Sequence[int]) -> None:
        """Write the shards ``indices``, none of which is there: the first ``rows[0]`` of ``table``
        are the first one's, the next ``rows[1]`` the second one's. They share as few files as they
        are rows of shards without a gap. Raises ``StorageError``."""
        begins = dict(zip(indices, accumulate(rows, initial=0), strict=False))
        counts = dict(zip(indices, rows, strict=True))
        for run in _without_gap(indices):
            part = table.slice(begins[run[0]], sum(counts[index] for index in run))
            if len(run) == 1:
                self.write(run[0], part)
            else:
                self._write_many(run, part, [counts[index] for index in run])

    def put_together(self, groups: Iterable[Sequence[int]]) -> None:
        """Let the shards of each of ``groups``, those that are there in files of their own, share
        files, as few as they are rows of shards without a gap. Raises ``StorageError``."""
        alone = {shards[0] for shards in self._listed().values() if len(shards) == 1}
        # Those of a process that was killed here, and of a writer that came late.
        left = {index for index in self._names() if super(PackedFolder, self).exists(index)}
        for group in groups:
            for run in _without_gap(sorted(alone.intersection(group))):
                if len(run) > 1:
                    parts = [super(PackedFolder, self).read(index) for index in run]
                    self._write_many(run, pa.concat_tables(parts), list(map(len, parts)))
                    left.update(run)
            for index in sorted(left):
                self.files.delete(file_of(index))
            left.clear()

    def replace(self, index: int, table: pa.Table) -> None:
        """See :class:`ShardFolder`."""
        self._part([index])
        super().replace(index, table)

    def remove(self, indices: Sequence[int] | None = None) -> None:
        """See :class:`ShardFolder`."""
        gone = self.indices() if indices is None else indices
        self._part(gone)
        super().remove(gone)

    def holding(self, index: int) -> Path:
        """The file that shard ``index`` lies in."""
        name = self._file_of_many(index)
        return self.path(index) if name is None else self.folder / name

    def own_file(self, index: int) -> Path:
        """The file that has shard ``index`` and no other, which it is given where it has none."""
        self._part([index], keep=True)
        return self.path(index)

    def _listed(self) -> dict[Listed, range]:
        self._seen = self._said()
        found = {file: shards for file in self.files.list() if (shards := shards_in(file.name))}
        together = {file: shards for file, shards in found.items() if len(shards) > 1}
        shared = {index: file.name for file, shards in together.items() for index in shards}
        self._shared = shared
        alone = {file: shards for file, shards in found.items() if shards[0] not in shared}
        return dict(sorted((together | alone).items(), key=lambda item: item[1][0]))

    def _names(self) -> dict[int, str]:
        """The files of many shards, by each of these."""
        if self._shared is None or self._seen != self._said():
            self._listed()
        assert self._shared is not None
        return self._shared

    def _said(self) -> _Version | None:
        """Another one when a file of many was written since."""
        try:
            return _version(self.folder / _MARK)
        except FileNotFoundError:
            return None

    def _shared_by(self, index: int) -> str | None:
        """The name of the file of many with shard ``index``, of those that are known; null where
        there is none."""
        name = self._names().get(index)
        if name is not None and not (self.folder / name).exists():
            self._listed()
            name = self._names().get(index)
        return name

    def _file_of_many(self, index: int) -> str | None:
        """The same, also where it was written since it was looked up."""
        name = self._shared_by(index)
        if name is None and not self.path(index).exists():
            self._listed()
            name = self._names().get(index)
        return name

    def _rows_of(self, index: int) -> int:
        name = self._file_of_many(index)
        if name is None:
            return super()._rows_of(index)
        path = self.folder / name
        return _rows_in(path, _version(path))[index - shards_in(name)[0]]

    def _pieces(
        self, indices: Sequence[int], columns: Sequence[str] | None, *, lenient: bool
    ) -> Iterator[tuple[pa.Table, list[int]]]:
        for run in _without_gap(indices):
            while run:
                name = self._file_of_many(run[0])
                if name is None:
                    yield from super()._pieces(run[:1], columns, lenient=lenient)
                    del run[0]
                    continue
                shared = self._names()
                names = [shared.get(index) for index in run]
                here = next((at for at, one in enumerate(names) if one != name), len(run))
                yield self._parts_of(name, run[:here], columns)
                del run[:here]

    def _part_of(self, name: str, index: int, columns: Sequence[str] | None = None) -> pa.Table:
        """Shard ``index`` of those in the file ``name``."""
        return self._parts_of(name, [index], columns)[0]

    def _parts_of(
        self, name: str, indices: Sequence[int], columns: Sequence[str] | None
    ) -> tuple[pa.Table, list[int]]:
        """The shards ``indices``, without a gap, of those in the file ``name``, and the rows of
        each."""
        path = self.folder / name
        wanted = tuple(self.schema.names if columns is None else columns)
        version, last = _version(path), self._last
        if last is None or last[:3] != (name, version, wanted):
            table = read_shard(path, self.schema, wanted).combine_chunks()
            last = self._last = _Read(name, version, wanted, table)
        rows, begin = _rows_in(path, version), indices[0] - shards_in(name)[0]
        here = rows[begin : begin + len(indices)]
        return last.table.slice(sum(rows[:begin]), sum(here)), here

    def _write_many(self, indices: Sequence[int], table: pa.Table, rows: Sequence[int]) -> None:
        name = file_of(indices[0], indices[-1])
        about = {_ROWS: json.dumps(list(rows))}
        self.files.create(name, self._encoded(table, self.folder / name, **about))
        put_file(self.folder / _MARK, b"")

    def _part(self, indices: Iterable[int], *, keep: bool = False) -> None:
        """Give every shard a file of its own that shares one with one of ``indices``, and with
        ``keep`` these too."""
        wanted = set(indices)
        names = {self._shared_by(index) for index in wanted}
        shared = self._names()
        for name in sorted(filter(None, names)):
            for index in shards_in(name):
                if keep or index not in wanted:
                    super().replace(index, self._part_of(name, index))
            self.files.delete(name)
            for index in shards_in(name):
                del shared[index]
        self._last = None


def _version(path: Path) -> _Version:
    """Another one when the file at ``path`` has been written again."""
    state = path.stat()
    return state.st_mtime_ns, state.st_size, state.st_ino


@lru_cache(maxsize=4096)
def _rows_in(path: Path, version: _Version) -> list[int]:  # noqa: ARG001
    """How many rows each shard in the file at ``path`` has. Raises ``StorageError``."""
    footer = read_footer(path)
    try:
        rows = json.loads((footer.metadata or {})[_ROWS.encode()])
    except (KeyError, ValueError):
        rows = []
    if len(rows) != len(shards_in(path.name)) or sum(rows) != footer.num_rows:
        raise damaged(path, "no rows of its shards", "delete it and run the same command again")
    return list(rows)


def _without_gap(indices: Sequence[int]) -> list[list[int]]:
    found: list[list[int]] = []
    for index in indices:
        if found and found[-1][-1] == index - 1:
            found[-1].append(index)
        else:
            found.append([index])
    return found
