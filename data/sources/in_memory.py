"""Tables in memory, made into the files that every reader reads: there is no second way in."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, TypeAlias

import pyarrow as pa

from prefloop.data.errors import InputError
from prefloop.data.shards import write_shard
from prefloop.data.sources.class_names import names_in_schema
from prefloop.data.utf8 import listed

if TYPE_CHECKING:
    from datasets import Dataset
    from pandas import DataFrame

Data: TypeAlias = "str | Path | Dataset | DataFrame | pa.Table | Sequence[Mapping[str, Any]]"
"""Where rows come from: a path, or a table in memory."""


def to_arrow(data: Any, name: str) -> pa.Table:
    """A ``datasets.Dataset``, a pandas frame, an Arrow table, whatever gives an Arrow stream
    (polars, duckdb) or a list of dicts, one a row, as an Arrow table. ``name`` is what errors call
    it.

    Raises ``InputError`` for anything else, and for columns that hold values of several types.
    """
    if isinstance(data, pa.Table):
        return data
    if isinstance(data, Mapping):  # a DatasetDict, among others
        splits = listed(data) or "none"
        raise InputError(f"{name}: is a mapping ({splits}): give one of its tables")
    if hasattr(data, "with_format") and hasattr(data, "features"):
        return data.with_format("arrow")[:]
    try:
        if type(data).__module__.partition(".")[0] == "pandas":
            return pa.Table.from_pandas(data, preserve_index=False)
        if hasattr(data, "__arrow_c_stream__"):
            return pa.table(data)
        if _are_rows(data):
            # Not Table.from_pylist, which knows the columns of the first row only.
            names = dict.fromkeys(key for row in data for key in row)
            return pa.table({key: pa.array([row.get(key) for row in data]) for key in names})
    except (ValueError, pa.ArrowException) as error:  # ValueError: two columns of one name
        raise InputError(
            f"{name}: {' '.join(str(error).split())}: a column must hold values of one "
            "type and have a name of its own"
        ) from None
    if isinstance(data, list | tuple) and not data:
        raise InputError(f"{name}: is an empty list: give it a row at least")
    if isinstance(data, list | tuple) and all(isinstance(one, str | Path) for one in data):
        raise InputError(
            f"{name}: is a list of paths: several sources go into the config, as "
            "`prompts: {train: [{path: ...}, {path: ...}]}`"
        )
    raise InputError(
        f"{name}: is a {type(data).__name__}: give a path, a datasets.Dataset, a pandas frame, an "
        "Arrow table or a list of dicts"
    )


def _are_rows(data: Any) -> bool:
    return (
        isinstance(data, list | tuple)
        and len(data) > 0
        and all(isinstance(row, Mapping) for row in data)
    )


def keep_as_file(data: Any, folder: Path, name: str) -> str:
    """The path that ``data`` is, or that of a Parquet file of its rows in ``folder``.

    The file is named by its rows, so the same table is the same file at a second call.
    """
    if isinstance(data, str | Path):
        return str(data)
    table = to_arrow(data, name)
    path = folder / f"{name}-{_digest(table)}.parquet"
    if not path.exists():
        write_shard(table, path, table.schema)
    return str(path)


@contextmanager
def as_files(data: Sequence[Any], name: str) -> Iterator[list[str]]:
    """Paths of all ``data``; those of tables in memory exist until the context ends."""
    with TemporaryDirectory(prefix="prefloop-") as folder:
        yield [keep_as_file(one, Path(folder), name) for one in data]


def _digest(table: pa.Table) -> str:
    digest = hashlib.blake2b(digest_size=8)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema.remove_metadata()) as writer:
        writer.write_table(table.replace_schema_metadata(None).combine_chunks())
    digest.update(memoryview(sink.getvalue()))
    classes = names_in_schema(table.schema, table.schema.names)
    if classes:  # the same numbers with other names are another table
        digest.update(json.dumps(classes).encode())
    return digest.hexdigest()
