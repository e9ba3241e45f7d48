"""The bytes of a file, line by line: unpacked, bounded, and refused in one line if they are not
text at all."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterator
from io import BufferedReader
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from prefloop.data.errors import InputError
from prefloop.data.utf8 import shown

LONGEST_LINE = 64 << 20
"""Bytes of a line, or of a CSV field, beyond which it is refused: a row needs several times its
size in memory."""
LONGEST_DOCUMENT = 1 << 30
"""Bytes of a JSON document, which is read as a whole, beyond which it is refused."""
_KEPT = 1_000
"""Bytes that are kept of a line that is too long, to be shown."""
_CHUNK = 1 << 20
_BOM = b"\xef\xbb\xbf"
_GZIP = b"\x1f\x8b"
_FOREIGN = {
    b"\x28\xb5\x2f\xfd": "is compressed with Zstandard: unpack it, e.g. zstd -d",
    b"\xfd7zXZ\x00": "is compressed with xz: unpack it, e.g. xz -d",
    b"BZh": "is compressed with bzip2: unpack it, e.g. bzip2 -d",
    b"PK\x03\x04": "is a ZIP archive or a spreadsheet: unpack it, or save it as CSV",
    b"PAR1": "is a Parquet file: set `format: parquet`",
    b"ARROW1": "is an Arrow file: load it with `datasets` or write it as Parquet",
    b"\xff\xfe": "is UTF-16: convert it, e.g. iconv -f UTF-16 -t UTF-8",
    b"\xfe\xff": "is UTF-16: convert it, e.g. iconv -f UTF-16 -t UTF-8",
}
_NO_TEXT = "is UTF-16 or no text: convert it, e.g. iconv -f UTF-16LE -t UTF-8"


class Line(NamedTuple):
    """A line of a file. ``cut``: it is too long, and ``data`` is its beginning."""

    number: int
    data: bytes
    cut: bool


def read_lines(path: Path) -> Iterator[Line]:
    """Numbered lines without a byte order mark; what is packed with gzip is unpacked.

    Raises ``InputError`` for what cannot be read and for what is no UTF-8 text by its first bytes.
    """
    number = 0
    try:
        with _open(path) as handle:
            while data := handle.readline(LONGEST_LINE):
                number += 1
                cut = len(data) == LONGEST_LINE and not data.endswith(b"\n")
                if cut:
                    data = data[:_KEPT]
                    while (rest := handle.readline(_CHUNK)) and not rest.endswith(b"\n"):
                        pass
                if number == 1:
                    _check_text(path, data)
                    data = data.removeprefix(_BOM)
                yield Line(number, data, cut)
    except (OSError, EOFError, zlib.error) as error:
        raise unreadable(path, error, number) from None


def read_document(path: Path) -> bytes:
    """The whole file without a byte order mark. Raises ``InputError`` as :func:`read_lines` does,
    and for a file that is too long."""
    try:
        with _open(path) as handle:
            data = handle.read(LONGEST_DOCUMENT + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise unreadable(path, error, 0) from None
    _check_text(path, data)
    if len(data) > LONGEST_DOCUMENT:
        raise InputError(
            f"{shown(str(path))}: is longer than {LONGEST_DOCUMENT >> 30} GiB, too long for one "
            "JSON document: write it as JSON Lines, an object a line"
        )
    return data.removeprefix(_BOM)


def holds_lines(path: Path) -> bool:
    """Whether a JSON file is in fact JSON Lines: its first two lines begin an object each, and the
    first is a whole one."""
    lines = islice((line for line in read_lines(path) if line.data.strip()), 2)
    first, second = next(lines, None), next(lines, None)
    if first is None or second is None or first.cut or not second.data.lstrip().startswith(b"{"):
        return False
    try:
        return isinstance(json.loads(first.data), dict)
    except (ValueError, RecursionError):
        return False


def looks_like(path: Path) -> str:
    """What the beginning of a file without a usable row suggests to do; empty for no idea."""
    try:
        with _open(path) as handle:
            begin = handle.read(_CHUNK).removeprefix(_BOM).strip()
    except (OSError, EOFError, zlib.error, InputError):
        return ""
    if not begin:
        return "the file is empty"
    if begin.startswith(b"["):
        return "it looks like one JSON array: set `format: json`"
    first = begin.splitlines()[0].strip()
    if first == b"{" or (first.startswith(b"{") and not first.endswith(b"}")):
        return "it looks like one JSON document over several lines: set `format: json`"
    if not first.startswith(b"{"):
        return "its lines are no JSON objects: set `format` to csv or text if they are that"
    return ""


def unreadable(path: Path, error: Exception, rows: int) -> InputError:
    """The error to raise for a file that cannot be read behind ``rows`` rows."""
    where = f" behind row {rows}" if rows else ""
    why = getattr(error, "strerror", None) or next(iter(str(error).splitlines()), "")
    return InputError(
        f"{shown(str(path))}: cannot be read{where}: {shown(why) or type(error).__name__}: "
        "check its permissions and that it is complete"
    )


def _open(path: Path) -> gzip.GzipFile | BufferedReader:
    with path.open("rb") as handle:
        packed = handle.read(2) == _GZIP
    return gzip.open(path, "rb") if packed or path.suffix == ".gz" else path.open("rb")


def _check_text(path: Path, begin: bytes) -> None:
    why = next((words for mark, words in _FOREIGN.items() if begin.startswith(mark)), None)
    # Every second byte of text in UTF-16 without a mark is zero, as long as it is ASCII.
    if why is None and b"\0" in (begin[1:2], begin[:1]) and begin[:4].count(b"\0") == 2:
        why = _NO_TEXT
    if why:
        raise InputError(f"{shown(str(path))}: {why}")
