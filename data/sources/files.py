"""Rows out of any prompt source, one at a time.

A row that cannot be read is given as a :class:`BadRow` and reading goes on behind it. Only what
makes the rest unreadable too (no such file, no access, a damaged archive) raises ``InputError``.
"""

from __future__ import annotations

import csv
import glob
import json
import logging
import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from itertools import chain, islice
from pathlib import Path
from typing import Any

from prefloop.data.config import FileFormat, PromptSource
from prefloop.data.embedded import resolve_embedded
from prefloop.data.errors import InputError
from prefloop.data.quarantine import BadRow
from prefloop.data.sources.class_names import (
    batch_by_names,
    names_in_features,
    names_in_schema,
    row_by_names,
)
from prefloop.data.sources.opening import (
    LONGEST_LINE,
    holds_lines,
    read_document,
    read_lines,
    unreadable,
)
from prefloop.data.sources.partitions import columns_in_path, is_hidden, partitioned_files
from prefloop.data.sources.rows import RawRow
from prefloop.data.sources.shard_names import require_all_shards
from prefloop.data.storage.objects import is_address
from prefloop.data.utf8 import listed, shown

logger = logging.getLogger(__name__)

SourceRow = RawRow | BadRow

_FORMATS: Mapping[str, FileFormat] = {
    ".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "json", ".csv": "csv", ".tsv": "csv",
    ".parquet": "parquet", ".pq": "parquet", ".txt": "text", ".text": "text",
}  # fmt: skip
_OF_TABLES: tuple[FileFormat, ...] = ("jsonl", "csv", "parquet")
_HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")
_DELIMITERS = (",", ";", "\t", "|")
_EXCEL_SEPARATOR = re.compile(r"\"?sep=([^\"\w])\"?\s*", re.IGNORECASE)
"""The first line of a CSV file of Excel's, where it says what parts the fields."""


def read_rows(source: PromptSource, *, classes: Collection[str] = ()) -> Iterator[SourceRow]:
    """The rows of ``source`` in their order, at most ``source.limit``. In the columns ``classes``,
    classes are given by their names, where the source has names for them.

    Raises ``InputError`` (on the first row asked for, or where reading breaks off) with one line
    that names the file and a remedy.
    """
    return islice(_rows(source, classes), source.limit)


def _rows(source: PromptSource, classes: Collection[str]) -> Iterator[SourceRow]:
    path = Path(resolve_embedded(source.path)).expanduser()
    folder = source.format == "auto" and path.is_dir()
    files = partitioned_files(path) if folder and source.split == "train" else []
    if source.format == "datasets" or (folder and not files):
        yield from _datasets_rows(source, path, classes)
        return
    files = files or _files(source, path)
    if not files:
        yield from _datasets_rows(source, path, classes)
    for file in files:
        # An embedded file keeps its short name: its path differs from machine to machine.
        name = source.path if source.path.startswith("embedded:") else shown(str(file))
        rows = _file_rows(file, name, source, classes)
        named = columns_in_path(file, path)
        yield from (_with_columns(row, named) for row in rows) if named else rows


def _with_columns(row: SourceRow, named: Mapping[str, str | None]) -> SourceRow:
    """``row`` with the columns that its file's folders name; its own columns come first."""
    if isinstance(row, BadRow):
        return row
    return RawRow(row.source, row.row, {**named, **row.fields})


def _files(source: PromptSource, path: Path) -> list[Path]:
    """The files that ``source`` means; none where it can only be the name of a hub dataset."""
    if is_address(source.path):
        raise InputError(
            f"{source.path}: rows are read from files of this machine: copy it here, and set the "
            "`path` to the copy"
        )
    if path.is_file():
        return [path]
    if path.is_dir():
        wanted = source.format
        found = sorted(
            p
            for p in path.rglob("*")
            if p.is_file() and _by_suffix(p) == wanted and not is_hidden(p.relative_to(path))
        )
        if not found:
            raise InputError(f"{path}: the directory holds no {wanted} file: check the `format`")
        return found
    if glob.has_magic(str(path)):
        names = glob.glob(str(path), recursive=True)  # noqa: PTH207 (Path.glob: relative only)
        found = sorted(Path(name) for name in names if Path(name).is_file())
        if not found:
            raise InputError(f"{path}: no file matches: check the pattern")
        return found
    if source.format == "auto" and not _by_suffix(path) and _HUB_NAME.fullmatch(source.path):
        return []
    raise InputError(f"{path}: no such file: check the `path` (it counts from {Path.cwd()})")


def _by_suffix(path: Path) -> FileFormat | None:
    return _FORMATS.get(path.with_suffix("").suffix if path.suffix == ".gz" else path.suffix)


def _file_rows(
    path: Path, name: str, source: PromptSource, classes: Collection[str]
) -> Iterator[SourceRow]:
    form = _by_suffix(path) if source.format == "auto" else source.format
    if form == "jsonl":
        return _jsonl_rows(path, name)
    if form == "json":
        return _json_rows(path, name)
    if form == "csv":
        return _csv_rows(path, name)
    if form == "parquet":
        return _parquet_rows(path, name, classes)
    if form == "text":
        return _text_rows(path, name, source.columns.text_column)
    raise InputError(
        f"{path}: the ending tells no format: set `format` to jsonl, json, csv, parquet or text"
    )


def _text_lines(path: Path, name: str) -> Iterator[tuple[int, str] | BadRow]:
    """Lines that hold something, as text."""
    for number, line, cut in read_lines(path):
        if cut:
            yield BadRow(
                name,
                number,
                None,
                "too_long",
                f"the line is longer than {LONGEST_LINE >> 20} MiB: break it up, or delete it",
                line.decode("utf-8", "backslashreplace"),
            )
            continue
        try:
            text = line.decode("utf-8").rstrip("\r\n")
        except UnicodeDecodeError as error:
            yield BadRow(
                name,
                number,
                None,
                "not_utf8",
                f"byte {error.start + 1} of the line is no UTF-8: save the file as UTF-8",
                line.rstrip(b"\r\n").decode("utf-8", "backslashreplace"),
            )
            continue
        if text.strip():
            yield number, text


def _text_rows(path: Path, name: str, column: str) -> Iterator[SourceRow]:
    for line in _text_lines(path, name):
        yield line if isinstance(line, BadRow) else RawRow(name, line[0], {column: line[1]})


def _jsonl_rows(path: Path, name: str) -> Iterator[SourceRow]:
    decoder, twice = _json_decoder()
    for line in _text_lines(path, name):
        if isinstance(line, BadRow):
            yield line
            continue
        number, text = line
        twice.clear()
        try:
            value = decoder.decode(text)
        except (ValueError, RecursionError) as error:
            yield BadRow(
                name,
                number,
                None,
                "broken_json",
                f"{error}: each line must be one JSON object",
                text,
            )
            continue
        yield _key_twice(name, number, twice[0], text) if twice else _object(name, number, value)


def _json_decoder() -> tuple[json.JSONDecoder, list[str]]:
    """A decoder, and a list that it adds the keys to which an object has twice."""
    twice: list[str] = []

    def as_dict(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            twice.append(next(key for key, n in Counter(key for key, _ in pairs).items() if n > 1))
            return _Twice(found, twice[-1])
        return found

    return json.JSONDecoder(object_pairs_hook=as_dict), twice


class _Twice(dict[str, Any]):
    """An object that has ``key`` twice."""

    def __init__(self, found: dict[str, Any], key: str) -> None:
        super().__init__(found)
        self.key = key


def _twice_in(value: Any) -> str | None:
    """A key that an object in ``value`` has twice."""
    if isinstance(value, _Twice):
        return value.key
    inside = value.values() if isinstance(value, dict) else value
    if not isinstance(value, dict | list):
        return None
    return next((key for one in inside if (key := _twice_in(one)) is not None), None)


def _key_twice(name: str, number: int, key: str, text: str) -> BadRow:
    detail = f"an object has the key {shown(key)!r} twice, and either may be meant: delete one"
    return BadRow(name, number, None, "key_twice", detail, text)


def _object(name: str, number: int, value: Any) -> SourceRow:
    if isinstance(value, dict):
        return RawRow(name, number, value)
    return BadRow(
        name,
        number,
        None,
        "not_an_object",
        f'is {_kind(value)} where a JSON object is needed: write {{"prompt": ...}}',
        json.dumps(value, ensure_ascii=False),
    )


def _kind(value: Any) -> str:
    kinds = {list: "an array", str: "a string", bool: "a boolean", type(None): "null"}
    return kinds.get(type(value), "a number")


def _json_rows(path: Path, name: str) -> Iterator[SourceRow]:
    if holds_lines(path):
        yield from _jsonl_rows(path, name)
        return
    decoder, twice = _json_decoder()
    try:
        # A bad byte becomes a surrogate, which makes its own row a bad one and no other.
        value = decoder.decode(read_document(path).decode("utf-8", "surrogateescape"))
    except (ValueError, RecursionError) as error:
        raise InputError(
            f"{path}: not valid JSON: {error}: if each line is an object of its own, "
            "set `format: jsonl`"
        ) from None
    if isinstance(value, _Twice):
        raise InputError(f"{path}: the object has the key {shown(value.key)!r} twice: delete one")
    for number, item in enumerate(_array_in(value, path), 1):
        key = _twice_in(item) if twice else None
        if key is not None:
            yield _key_twice(name, number, key, json.dumps(item, ensure_ascii=False))
        else:
            yield _object(name, number, item)


def _array_in(value: Any, path: Path) -> list[Any]:
    """The array of rows: ``value`` itself, or the one array of objects that it holds."""
    if isinstance(value, list):
        return value
    arrays = (
        {
            key: item
            for key, item in value.items()
            if isinstance(item, list) and any(isinstance(row, dict) for row in item)
        }
        if isinstance(value, dict)
        else {}
    )
    if len(arrays) == 1:
        return next(iter(arrays.values()))
    found = f"{len(arrays)} ({listed(arrays)})" if arrays else "none"
    raise InputError(
        f"{path}: must be a JSON array of objects, or an object with one such array; "
        f"it has {found}: convert it to JSON Lines"
    )


def _csv_rows(path: Path, name: str) -> Iterator[SourceRow]:
    record: list[str] = []  # the lines of the record being read, for rows that cannot be parsed

    def lines() -> Iterator[str]:
        for number, line, cut in read_lines(path):
            if cut:
                raise InputError(
                    f"{path}, line {number}: is longer than {LONGEST_LINE >> 20} MiB: check the "
                    "quotes before it, or delete it"
                )
            text = line.decode("utf-8", "surrogateescape")
            record.append(text)
            yield text

    # The limit is one for the process; its default refuses prompts over 128 KiB.
    csv.field_size_limit(LONGEST_LINE)
    read = lines()
    begin = list(islice(read, 1))
    said = _EXCEL_SEPARATOR.fullmatch(begin[0]) if begin else None
    delimiter = said[1] if said else _delimiter(begin, path)
    if said:
        begin = []
    above = 1 if said else 0
    # Strict, because otherwise a quote that is never closed silently swallows the rows behind it.
    reader = csv.reader(chain(begin, read), delimiter=delimiter, strict=True)
    header: list[str] | None = None
    while True:
        record.clear()
        number = above + reader.line_num + 1
        try:
            fields = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            if header is None:
                raise InputError(f"{path}, row {number}: no CSV header: {error}") from None
            yield BadRow(
                name,
                number,
                None,
                "broken_csv",
                f"{error}: lines {number} to {above + reader.line_num} are no CSV record, check "
                "the quotes",
                "".join(record),
            )
            continue
        if not fields:
            continue
        if header is None:
            header = fields
            twice = [each for each, count in Counter(header).items() if count > 1]
            if twice:
                raise InputError(
                    f"{path}, row {number}: the header names a column twice ({listed(twice)}): "
                    "rename or delete one"
                )
        elif len(fields) != len(header):
            yield BadRow(
                name,
                number,
                None,
                "wrong_field_count",
                f"has {len(fields)} fields where the header has {len(header)}: quote fields with "
                "commas or line breaks",
                "".join(record),
            )
        else:
            yield RawRow(name, number, dict(zip(header, fields, strict=True)))


def _delimiter(begin: list[str], path: Path) -> str:
    """What parts the fields of the header: what the file's ending says, or else, where that parts
    nothing, the one of the others that does (European Excel writes semicolons)."""

    def fields(delimiter: str) -> int:
        try:
            return len(next(csv.reader(begin, delimiter=delimiter, strict=True), []))
        except csv.Error:
            return 0

    usual = "\t" if ".tsv" in path.suffixes else ","
    best = max((usual, *_DELIMITERS), key=fields)
    if fields(usual) != 1 or fields(best) == 1:
        return usual
    logger.warning("%s: is read with %r between the fields, as in its header", path, best)
    return best


def _parquet_rows(path: Path, name: str, classes: Collection[str]) -> Iterator[SourceRow]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    number = 0
    try:
        with pq.ParquetFile(path) as file:
            check_names(file.schema_arrow, name)
            names = names_in_schema(file.schema_arrow, classes)
            for batch in file.iter_batches(batch_size=1_000):
                for row in _batch_rows(batch_by_names(batch, names), name, number):
                    number += 1
                    yield row
    except (OSError, pa.ArrowException) as error:
        raise unreadable(path, error, number) from None


def check_names(schema: Any, name: str) -> None:
    """Raise ``InputError`` where an Arrow schema has two columns, or two fields of one column, of
    the same name: which is meant cannot be told. ``name`` is what the error calls the table."""
    import pyarrow as pa

    def look(fields: Iterable[Any], of: str) -> None:
        fields = list(fields)
        twice = [each for each, count in Counter(one.name for one in fields).items() if count > 1]
        if twice:
            raise InputError(
                f"{name}: {of} names a column twice ({listed(twice)}): rename or delete one"
            )
        for one in fields:
            kind = one.type
            while pa.types.is_list(kind) or pa.types.is_large_list(kind):
                kind = kind.value_type
            if pa.types.is_struct(kind):
                look(kind.fields, f"the column {shown(one.name)}")

    look(schema, "the table")


def _batch_rows(batch: Any, name: str, before: int) -> Iterator[SourceRow]:
    try:
        rows = batch.to_pylist()
    except UnicodeDecodeError:
        for number in range(batch.num_rows):
            yield _single_row(batch.slice(number, 1), name, before + number + 1)
        return
    for number, fields in enumerate(rows, before + 1):
        yield RawRow(name, number, fields)


def _single_row(batch: Any, name: str, number: int) -> SourceRow:
    try:
        return RawRow(name, number, batch.to_pylist()[0])
    except UnicodeDecodeError as error:
        content = error.object.decode("utf-8", "backslashreplace")
        detail = f"byte {error.start + 1} of a string is no UTF-8: write it as UTF-8"
        field = next((column for column in batch.schema.names if not _decodes(batch[column])), None)
        return BadRow(name, number, field, "not_utf8", detail, content)


def _decodes(column: Any) -> bool:
    try:
        column.to_pylist()
    except UnicodeDecodeError:
        return False
    return True


def _datasets_rows(
    source: PromptSource, path: Path, classes: Collection[str]
) -> Iterator[SourceRow]:
    number = 0
    try:
        dataset = _open_dataset(source, path)
        names = names_in_features(getattr(dataset, "features", None), classes)
        for number, fields in enumerate(dataset, 1):
            yield RawRow(source.path, number, row_by_names(fields, names) if names else fields)
    except InputError:
        raise
    except Exception as error:  # datasets raises its own, the hub's, Arrow's and Python's errors
        why = next(iter(str(error).splitlines()), type(error).__name__)
        where = f" behind row {number}" if number else ""
        remedy = (
            "set `format` to read its files one by one"
            if path.is_dir()
            else "it is no file here, so it was looked up as a hub dataset: check the name, "
            "`split`, `config_name` and the connection"
        )
        raise InputError(
            f"{source.path}: cannot be read by `datasets`{where}: {why}: {remedy}"
        ) from error


def _warn_of_other_kinds(source: PromptSource, folder: Path) -> None:
    files = (file.relative_to(folder) for file in folder.rglob("*") if file.is_file())
    kinds = {str(_by_suffix(file)) for file in files if not is_hidden(file)} & {*_OF_TABLES}
    if len(kinds) > 1 and source.config_name is None:
        logger.warning(
            "%s: holds files of several kinds (%s), and `datasets` reads one of them: set `format` "
            "to the one that is meant, or the `path` to a pattern of its files",
            shown(str(folder)),
            ", ".join(sorted(kinds)),
        )


def _open_dataset(source: PromptSource, path: Path) -> Any:
    import datasets

    saved = (path / "dataset_dict.json").is_file() or (path / "state.json").is_file()
    if not saved:
        name = str(path) if path.exists() else source.path
        if path.is_dir():
            require_all_shards(path.rglob(f"{glob.escape(source.split)}-*-of-*"), path)
            _warn_of_other_kinds(source, path)
        return datasets.load_dataset(name, source.config_name, split=source.split, streaming=True)
    loaded = datasets.load_from_disk(str(path))
    if isinstance(loaded, datasets.DatasetDict):
        if source.split not in loaded:
            raise InputError(
                f"{path}: has no split {source.split!r}: set `split` to one of {listed(loaded)}"
            )
        return loaded[source.split]
    return loaded
