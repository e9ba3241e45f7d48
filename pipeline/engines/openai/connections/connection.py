"""One connection, as asyncio sees it: a request, its answer, and then the next."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import cast

from httptools import HttpParserError, HttpParserUpgrade, HttpResponseParser

from prefloop.pipeline.engines.openai.connections.response import (
    LARGEST_BODY,
    Response,
    TransportError,
    check_headers_of_answer,
    too_large,
    unpacked,
)

_LONGEST_HEAD = 64 << 10
"""Bytes of a status line and its headers."""
_WRAPPING = 1 << 20
"""Bytes that the chunks of a body may take beside it."""
_DISCONNECTED = "no connection (Server disconnected)"


@dataclass(frozen=True, slots=True)
class Answered:
    """A response, and the cookies that came with it."""

    response: Response
    cookies: tuple[str, ...]


class Connection(asyncio.Protocol):
    """An open connection. It is asked for one answer at a time.

    The methods ``on_*`` are for the parser, which calls them while data are fed to it.
    """

    def __init__(self) -> None:
        self.idle_since = 0.0
        """When its last answer was taken, by the loop's clock."""
        self._transport: asyncio.Transport | None = None
        self._waiting: asyncio.Future[Answered] | None = None
        self._parser: HttpResponseParser | None = HttpResponseParser(self)
        self._stays = True
        self._begin()

    @property
    def is_reusable(self) -> bool:
        """Whether another request may be sent."""
        transport = self._transport
        return self._stays and transport is not None and not transport.is_closing()

    async def ask(self, request: bytes) -> Answered:
        """The answer to ``request``, head and body. Raises ``TransportError``. Where the wait is
        ended, the connection is of no further use."""
        transport = self._transport
        if transport is None or transport.is_closing():
            raise TransportError(_DISCONNECTED, was_sent=False)
        self._waiting = asyncio.get_running_loop().create_future()
        self._begin()
        try:
            transport.write(request)
            return await self._waiting
        finally:
            self._waiting = None

    def abort(self) -> None:
        """Close it at once."""
        self._stays = False
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See ``asyncio.Protocol``."""
        # No isinstance: the transport of another loop than asyncio's own is none of its classes.
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        """See ``asyncio.Protocol``."""
        if self._parser is None or not self._is_awaited:
            self.abort()  # an answer to nothing, such as that the server is going to close
            return
        self._size += len(data)
        try:
            self._parser.feed_data(data)
        except (HttpParserError, HttpParserUpgrade) as error:
            words = error.args[0] if isinstance(error, HttpParserError) else "another protocol"
            self._fail(TransportError(f"no connection (no HTTP: {words})", was_sent=True))
            return
        if not self._has_head and self._size > _LONGEST_HEAD:
            self._fail(TransportError("an answer whose headers do not end", was_sent=True))
        elif self._size > LARGEST_BODY + _WRAPPING:
            self._fail(too_large(LARGEST_BODY))

    def connection_lost(self, exc: Exception | None) -> None:
        """See ``asyncio.Protocol``."""
        if self._has_head and self._ends_with_connection and exc is None:
            self._complete()
        words = _DISCONNECTED if exc is None else f"no connection ({exc or type(exc).__name__})"
        self._fail(TransportError(words, was_sent=True))
        self._transport = self._parser = None

    def on_message_begin(self) -> None:
        """An answer begins."""
        if not self._is_awaited:
            self._stays = False  # a second one

    def on_header(self, name: bytes, value: bytes) -> None:
        """A header, or behind the body a trailer."""
        if self._has_head or not self._is_awaited:
            return
        key, text = name.decode("latin-1").lower(), value.decode("utf-8", "surrogateescape")
        if key == "set-cookie":
            self._cookies.append(text)
        else:
            self._headers.setdefault(key, text)

    def on_headers_complete(self) -> None:
        """The body is next."""
        if self._parser is None or not self._is_awaited:
            return
        self._status = self._parser.get_status_code()
        if self._status < 200:
            return
        self._has_head = True
        self._stays = self._parser.should_keep_alive()
        try:
            check_headers_of_answer(self._headers, LARGEST_BODY)
        except TransportError as error:
            self._fail(error)

    def on_body(self, piece: bytes) -> None:
        """A part of the body."""
        self._pieces.append(piece)

    def on_message_complete(self) -> None:
        """The answer is whole, or one more is to come behind it."""
        if self._has_head:
            self._complete()
        else:
            self._begin(self._size)

    @property
    def _is_awaited(self) -> bool:
        return self._waiting is not None and not self._waiting.done()

    @property
    def _ends_with_connection(self) -> bool:
        coding = self._headers.get("transfer-encoding", "").lower()
        return "content-length" not in self._headers and "chunked" not in coding

    def _begin(self, size: int = 0) -> None:
        self._size = size
        self._status = 0
        self._has_head = False
        self._headers: dict[str, str] = {}
        self._cookies: list[str] = []
        self._pieces: list[bytes] = []

    def _complete(self) -> None:
        waiting, pieces = self._waiting, self._pieces
        if waiting is None or waiting.done():
            return
        body = pieces[0] if len(pieces) == 1 else b"".join(pieces)
        if len(body) > LARGEST_BODY:
            self._fail(too_large(LARGEST_BODY))
            return
        try:
            response = Response(self._status, self._headers, unpacked(body, self._headers))
        except TransportError as error:
            self._fail(error)
            return
        waiting.set_result(Answered(response, tuple(self._cookies)))

    def _fail(self, error: TransportError) -> None:
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_exception(error)
        self.abort()
