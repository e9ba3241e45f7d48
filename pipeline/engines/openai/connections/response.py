"""What comes back over HTTP, and how much of it is read at most."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from dataclasses import dataclass

from prefloop.pipeline.engines.openai.server_words import one_line

LARGEST_BODY = 32 << 20
"""Bytes of a response, unpacked; more are not read. The longest answers take some 5 MB."""
_ENCODINGS = {"", "identity", "gzip", "deflate"}  # no others: they may unpack to anything
_GZIP, _ZLIB, _BARE = 16 + zlib.MAX_WBITS, zlib.MAX_WBITS, -zlib.MAX_WBITS


class TransportError(Exception):
    """No whole response came. ``was_sent``: the server may have begun to work on it."""

    def __init__(self, problem: str, *, was_sent: bool) -> None:
        super().__init__(problem)
        self.was_sent = was_sent


@dataclass(frozen=True, slots=True)
class Response:
    """What came: ``body`` is unpacked and not longer than :data:`LARGEST_BODY`."""

    status: int
    headers: Mapping[str, str]
    body: bytes


def check_headers_of_answer(headers: Mapping[str, str], most: int) -> None:
    """Refuse a body that is not to be read, ``most`` bytes being the limit."""
    encoding = headers.get("content-encoding")
    if encoding is not None and encoding.strip().lower() not in _ENCODINGS:
        shown = one_line(encoding.strip().lower(), 40)
        problem = f"an answer in content-encoding {shown!r}, which was not asked for"
        raise TransportError(problem, was_sent=True)
    announced = headers.get("content-length", "")
    if announced.isascii() and announced.isdigit() and int(announced[:20]) > most:
        raise too_large(most)


def too_large(most: int) -> TransportError:
    """Why no more than ``most`` bytes were read."""
    problem = f"an answer of more than {most >> 20} MiB, which is not read"
    return TransportError(problem, was_sent=True)


def unpacked(body: bytes, headers: Mapping[str, str]) -> bytes:
    """A ``body`` that came whole, out of what it was packed in. Raises ``TransportError``."""
    encoding = headers.get("content-encoding", "").strip().lower()
    if encoding in ("", "identity") or not body:
        return body
    # Deflate is by the standard in zlib's wrapping, which some servers leave out.
    bare_or_zlib = _ZLIB if body[0] & 0xF == 8 else _BARE
    kind = _GZIP if encoding == "gzip" else bare_or_zlib
    found, size = [], 0
    try:
        while body:  # gzip may come in several parts
            unpacking = zlib.decompressobj(kind)
            piece = unpacking.decompress(body, LARGEST_BODY + 1 - size)
            size += len(piece)
            if size > LARGEST_BODY:
                raise too_large(LARGEST_BODY)
            if not unpacking.eof:
                raise TransportError(f"an answer whose {encoding} is cut off", was_sent=True)
            found.append(piece)
            body = unpacking.unused_data if kind == _GZIP else b""
    except zlib.error as error:
        problem = f"an answer whose {encoding} is damaged ({error})"
        raise TransportError(problem, was_sent=True) from None
    return b"".join(found)
