"""Columns that stand in the names of folders (``label=a/part-0.parquet``), as Spark, DuckDB, Arrow
and polars write partitioned tables: the files themselves do not have them."""

from __future__ import annotations

import glob
import re
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote

from prefloop.data.errors import InputError
from prefloop.data.utf8 import shown

_NULL = "__HIVE_DEFAULT_PARTITION__"
_ENDINGS = (".parquet", ".pq", ".jsonl", ".ndjson", ".csv", ".tsv", ".jsonl.gz", ".csv.gz")
_OF_A_SPLIT = re.compile(
    r"(?:\A|[-._ 0-9])(?:train|training|validation|valid|val|dev|test|testing|eval|evaluation)"
    r"(?:[-._ 0-9]|\Z)"
)
"""File names that ``datasets`` takes for those of a split."""


def columns_in_path(file: Path, path: Path) -> dict[str, str | None]:
    """The columns that the folders between ``path`` (a folder or a glob) and its ``file`` name,
    each with the text of its value; null where it is the word for that."""
    found: dict[str, str | None] = {}
    for part in _below(file, path).parts[:-1]:
        name, equals, value = part.partition("=")
        if name and equals:
            found[unquote(name)] = None if value == _NULL else unquote(value)
    return found


def partitioned_files(folder: Path) -> list[Path]:
    """The files of a partitioned table in ``folder``, in the order of their names; none where no
    file lies in a folder whose name is a column's. Raises ``InputError`` where their names are
    those of splits: which of them are meant is then to be said."""
    found = sorted(_files_in(folder))
    if not any(columns_in_path(file, folder) for file in found):
        return []
    of_split = next((file for file in found if _OF_A_SPLIT.search(file.name)), None)
    if of_split is not None:
        raise InputError(
            f"{shown(str(folder))}: its folders name a column, and its files a split "
            f"({shown(str(of_split.relative_to(folder)))}): set the `path` to a pattern of the "
            f"files that are meant, e.g. {shown(str(folder))}/**/train*"
        )
    return found


def is_hidden(path: Path) -> bool:
    """Whether a file within a folder is one that programs keep for themselves, by the rule of
    ``datasets``: notebooks' copies of files, macOS's shadows of them."""
    return any(part.startswith((".", "__")) for part in path.parts)


def _files_in(folder: Path) -> Iterator[Path]:
    for path in folder.rglob("*"):
        kept = path.name.endswith(_ENDINGS) and path.name[0] != "_"
        if kept and path.is_file() and not is_hidden(path.relative_to(folder)):
            yield path


def _below(file: Path, path: Path) -> Path:
    """``file`` counted from ``path``, or from the last folder before its first wildcard."""
    base = path
    while glob.has_magic(str(base)) and base != base.parent and not base.is_dir():
        base = base.parent
    return file.relative_to(base) if base != file and file.is_relative_to(base) else Path(file.name)
