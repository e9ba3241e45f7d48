"""Raw rows out of files and datasets, one at a time, with where each one stood.

A row that cannot be read at all (a broken JSON line, bytes that are not UTF-8) is a
:class:`BadRow` and the next one is read; a file that cannot be read at all is an
:class:`InputError`.
"""

from __future__ import annotations

import codecs
import csv
import gzip
import io
import json
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, cast

from data.config import PromptSource
from data.embedded import resolve_embedded
from data.errors import InputError

_FORMATS = {
    ".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "json", ".csv": "csv", ".tsv": "csv",
    ".parquet": "parquet", ".txt": "text", ".text": "text", ".md": "text",
}  # fmt: skip
_DATA_KEYS = ("data", "rows", "prompts", "examples", "instances")


@dataclass(frozen=True, slots=True)
class RawRow:
    """A row as the source has it. ``row`` counts from 1; in line formats it is the line."""

    source: str
    row: int
    fields: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class BadRow:
    """A row that cannot be used: why, what to do about it, and all that could be read of it."""

    source: str
    row: int
    field: str | None
    reason: str
    detail: str
    content: str


def read_rows(source: PromptSource) -> Iterator[RawRow | BadRow]:
    """The rows of ``source`` in their order, at most ``source.limit``.

    Raises :class:`InputError` for a source that does not exist or cannot be read.
    """
    for count, row in enumerate(_rows(source)):
        if count == source.limit:
            return
        yield row


def _rows(source: PromptSource) -> Iterator[RawRow | BadRow]:
    path = Path(resolve_embedded(source.path))
    kind = source.format if source.format != "auto" else _kind_of(path)
    if kind == "datasets":
        return _from_datasets(source)
    if not path.is_file():
        raise InputError(
            f"{source.path}: {'is a folder' if path.is_dir() else 'no such file'}: give the path "
            "of a file, or set format: datasets for a datasets folder or hub name"
        )
    readers = {
        "jsonl": _from_jsonl, "json": _from_json, "csv": _from_csv, "text": _from_text,
        "parquet": _from_parquet,
    }  # fmt: skip
    return readers[kind](source.path, path)


def _kind_of(path: Path) -> str:
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes and suffixes[-1] == ".gz":
        suffixes.pop()
    kind = _FORMATS.get(suffixes[-1]) if suffixes else None
    if kind and not path.is_dir():
        return kind
    if path.is_file():
        raise InputError(
            f"{path}: its ending says nothing about its format: set `format` to one of "
            "jsonl, json, csv, parquet, text"
        )
    return "datasets"


@contextmanager
def _readable(source: str) -> Iterator[None]:
    """Errors of the file as a whole, in one line."""
    try:
        yield
    except (OSError, EOFError, zlib.error) as error:
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise InputError(
            f"{source}: cannot be read: {reason}: check the path and its permissions"
        ) from None


def _open(path: Path) -> IO[bytes]:
    compressed = path.suffix.lower() == ".gz"
    return cast(IO[bytes], gzip.open(path, "rb")) if compressed else path.open("rb")


def _lines(source: str, path: Path) -> Iterator[tuple[int, str] | BadRow]:
    """Numbered lines that are not blank; those that are not UTF-8 as bad rows."""
    with _readable(source), _open(path) as handle:
        for number, line in enumerate(handle, start=1):
            if number == 1:
                line = line.removeprefix(codecs.BOM_UTF8)
            try:
                text = line.decode("utf-8").rstrip("\r\n")
            except UnicodeDecodeError as error:
                yield _not_utf8(source, number, line, error)
                continue
            if text.strip():
                yield number, text


def _not_utf8(source: str, row: int, raw: bytes, error: UnicodeDecodeError) -> BadRow:
    return BadRow(
        source, row, None, "not_utf8",
        f"byte {error.start + 1} of the line is not UTF-8: save the file as UTF-8",
        raw.decode("utf-8", "backslashreplace").rstrip("\r\n"),
    )  # fmt: skip


def _from_jsonl(source: str, path: Path) -> Iterator[RawRow | BadRow]:
    for line in _lines(source, path):
        if isinstance(line, BadRow):
            yield line
            continue
        number, text = line
        try:
            value = json.loads(text)
        except (json.JSONDecodeError, RecursionError) as error:
            yield BadRow(
                source, number, None, "broken_json", f"{error}: one JSON object a line", text
            )
            continue
        yield _object(source, number, value)


def _from_json(source: str, path: Path) -> Iterator[RawRow | BadRow]:
    with _readable(source), _open(path) as handle:
        raw = handle.read()
    try:
        value = json.loads(raw.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise InputError(
            f"{source}: byte {error.start + 1} is not UTF-8: save it as UTF-8"
        ) from None
    except (json.JSONDecodeError, RecursionError) as error:
        raise InputError(f"{source}: not valid JSON: {error}") from None
    if isinstance(value, dict):
        value = next((value[key] for key in _DATA_KEYS if isinstance(value.get(key), list)), value)
    if not isinstance(value, list):
        raise InputError(
            f"{source}: must be a list of objects (or an object with such a list under "
            f"{', '.join(_DATA_KEYS)}); for one object a line use the ending .jsonl"
        )
    for number, item in enumerate(value, start=1):
        yield _object(source, number, item)


def _object(source: str, number: int, value: Any) -> RawRow | BadRow:
    if isinstance(value, dict):
        return RawRow(source, number, value)
    return BadRow(
        source, number, None, "not_an_object",
        f'found {type(value).__name__}: write an object such as {{"prompt": "..."}}',
        json.dumps(value, ensure_ascii=False),
    )  # fmt: skip


def _from_csv(source: str, path: Path) -> Iterator[RawRow | BadRow]:
    """A header line, then rows; ``row`` is the line on which a row ends."""
    delimiter = "\t" if ".tsv" in path.suffixes else ","
    csv.field_size_limit(2**31 - 1)  # the default of 128 KiB is less than a long conversation
    with _readable(source), _open(path) as handle:
        # Undecodable bytes become lone surrogates, which are found row by row below.
        text = io.TextIOWrapper(handle, "utf-8", errors="surrogateescape", newline="")
        reader = csv.reader(text, delimiter=delimiter, strict=True)
        header: list[str] | None = None
        while True:
            try:
                cells = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                yield BadRow(
                    source, reader.line_num, None, "broken_csv",
                    f"{error}: quote fields with \" and double the quotes in them", "",
                )  # fmt: skip
                continue
            if header is None:
                header = [name.removeprefix("\ufeff").strip() for name in cells]
                continue
            if not cells:
                continue
            raw = delimiter.join(cells)
            if len(cells) != len(header):
                yield BadRow(
                    source, reader.line_num, None, "wrong_field_count",
                    f"{len(cells)} fields under {len(header)} column names", _visible(raw),
                )  # fmt: skip
                continue
            yield RawRow(source, reader.line_num, dict(zip(header, cells, strict=True)))


def _visible(text: str) -> str:
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def _from_text(source: str, path: Path) -> Iterator[RawRow | BadRow]:
    for line in _lines(source, path):
        if isinstance(line, BadRow):
            yield line
        else:
            yield RawRow(source, line[0], {"prompt": line[1]})


def _from_parquet(source: str, path: Path) -> Iterator[RawRow | BadRow]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with _readable(source):
            file = pq.ParquetFile(path)
        number = 0
        for batch in file.iter_batches(batch_size=1024):
            for fields in batch.to_pylist():
                number += 1
                yield RawRow(source, number, fields)
    except pa.ArrowException as error:
        line = next(iter(str(error).splitlines()), "")
        raise InputError(f"{source}: not a readable Parquet file: {line}") from None


def _from_datasets(source: PromptSource) -> Iterator[RawRow | BadRow]:
    import datasets

    folder = Path(source.path)
    try:
        if folder.is_dir() and (
            (folder / "dataset_info.json").exists() or (folder / "dataset_dict.json").exists()
        ):
            found = datasets.load_from_disk(source.path)
            if isinstance(found, datasets.DatasetDict):
                found = found[source.split]
        else:
            found = datasets.load_dataset(
                source.path, source.config_name, split=source.split, streaming=True
            )
    except KeyError:
        raise InputError(
            f"{source.path}: has no split {source.split!r}, but {', '.join(found)}: set `split`"
        ) from None
    except Exception as error:  # noqa: BLE001 - loading scripts, hubs and files fail in many ways
        line = next(iter(str(error).splitlines()), "")
        raise InputError(
            f"{source.path}: cannot be loaded as a dataset ({type(error).__name__}: {line}): give "
            "an existing file or datasets folder, or a hub name this machine can reach"
        ) from None
    for number, fields in enumerate(found, start=1):
        yield RawRow(source.path, number, dict(fields))
