"""Open connections to one server, each used again for the next request.

A POST of JSON costs a quarter here of what it does in a client that can do everything: at the rates
at which judges answer, that is a third of what a vote costs.
"""

from __future__ import annotations

import asyncio
import socket as sockets
from collections import deque
from collections.abc import Mapping
from http.cookies import CookieError, SimpleCookie
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from prefloop.pipeline.engines.openai.connections.connection import Answered, Connection
from prefloop.pipeline.engines.openai.connections.response import Response, TransportError
from prefloop.pipeline.engines.openai.server_words import one_line

if TYPE_CHECKING:
    import ssl

    import aiohttp
    import yarl

IDLE_S = 4.0
"""Seconds after which a connection is not used again: servers close idle ones after five or more.
"""
_NEXT_ADDRESS_S = 0.25
_ADDRESSES_KEPT_S = 10.0
_MOST_URLS = 64


def is_plain(url: str) -> bool:
    """Whether ``url`` is a server's name or number and a path, and nothing out of the ordinary."""
    parts = urlsplit(url)
    return (
        parts.scheme.lower() in ("http", "https")
        and bool(parts.hostname)
        and url.isascii()
        and "@" not in parts.netloc
        and "%" not in parts.netloc
    )


class Cookies:
    """What a server has us bring along; most have nothing, and then there is no jar."""

    def __init__(self) -> None:
        self.jar: aiohttp.CookieJar | None = None

    def opened(self) -> aiohttp.CookieJar:
        """The jar, a new one where there was none."""
        import aiohttp

        if self.jar is None:
            self.jar = aiohttp.CookieJar(unsafe=True)  # a balancer's, also by a bare address
        return self.jar


class KeptAlive:
    """The connections to one server. Use it from one event loop."""

    def __init__(
        self,
        url: str,
        headers: Mapping[str, str],
        trusted: ssl.SSLContext | None,
        cookies: Cookies,
    ) -> None:
        """``url`` is :func:`is_plain`; ``headers`` go with each request; ``trusted`` is for
        https. Raises ``ValueError`` for headers that are none."""
        import yarl

        self._origin = yarl.URL(url).origin()
        self._ssl = trusted if self._origin.scheme == "https" else None
        self._cookies = cookies
        self._cookie = ""
        lines = [f"host: {self._host_header()}"]
        for name, value in headers.items():
            if {"\r", "\n", "\0"} & {*name, *value}:
                raise ValueError(f"the header {name!r} has a line break")
            if name.lower() == "cookie":
                self._cookie = value
            else:
                lines.append(f"{name}: {value}")
        self._head = "\r\n".join(lines).encode()
        self._urls: dict[str, tuple[yarl.URL, bytes]] = {}
        self._idle: deque[Connection] = deque()
        self._all: set[Connection] = set()
        self._addresses: list[Any] = []
        self._addresses_until = 0.0
        self._resolving = asyncio.Lock()

    async def post(self, url: str, body: bytes) -> Response:
        """The response to ``body``, sent to ``url`` of this server. Raises ``TransportError``."""
        known = self._urls.get(url) or self._known(url)
        request = b"%scontent-length: %d\r\n%s\r\n%s" % (
            known[1], len(body), self._cookies_for(known[0]), body
        )  # fmt: skip
        connection = self._used_again() or await self._opened()
        try:
            answered = await connection.ask(request)
        except BaseException:
            self._all.discard(connection)
            connection.abort()
            raise
        self._put_back(connection)
        if answered.cookies:
            self._take_cookies(answered, known[0])
        return answered.response

    def close(self) -> None:
        """Close all connections. Idempotent."""
        self._idle.clear()
        for connection in self._all:
            connection.abort()
        self._all.clear()

    def _known(self, url: str) -> tuple[yarl.URL, bytes]:
        import yarl

        parsed = yarl.URL(url)
        line = f"POST {parsed.raw_path_qs} HTTP/1.1\r\n".encode("ascii")
        if len(self._urls) >= _MOST_URLS:  # a server that sends every request elsewhere
            self._urls.clear()
        self._urls[url] = found = parsed, line + self._head + b"\r\n"
        return found

    def _host_header(self) -> str:
        host = self._origin.raw_host or ""
        shown = f"[{host}]" if ":" in host else host
        return shown if self._origin.is_default_port() else f"{shown}:{self._origin.port}"

    def _cookies_for(self, url: yarl.URL) -> bytes:
        jar = self._cookies.jar
        if not self._cookie and not jar:
            return b""
        found = jar.filter_cookies(url).values() if jar else ()
        pairs = [f"{one.key}={one.coded_value}" for one in found]
        said = "; ".join([*([self._cookie] if self._cookie else []), *pairs])
        return f"cookie: {said}\r\n".encode() if said else b""

    def _take_cookies(self, answered: Answered, url: yarl.URL) -> None:
        for said in answered.cookies:
            try:
                self._cookies.opened().update_cookies(SimpleCookie(said), url)
            except CookieError:
                continue

    def _used_again(self) -> Connection | None:
        now = asyncio.get_running_loop().time()
        while self._idle:
            connection = self._idle.pop()  # the last one used: the others may go
            if connection.is_reusable and now - connection.idle_since < IDLE_S:
                return connection
            self._all.discard(connection)
            connection.abort()
        return None

    def _put_back(self, connection: Connection) -> None:
        if not connection.is_reusable:
            self._all.discard(connection)
            connection.abort()
            return
        now = asyncio.get_running_loop().time()
        connection.idle_since = now
        self._idle.append(connection)
        while self._idle and now - self._idle[0].idle_since >= IDLE_S:
            old = self._idle.popleft()
            self._all.discard(old)
            old.abort()

    async def _opened(self) -> Connection:
        from aiohappyeyeballs import start_connection

        loop = asyncio.get_running_loop()
        host = self._origin.raw_host or ""
        try:
            addresses = await self._resolved(host, self._origin.port or 0)
            socket = await start_connection(
                addresses, happy_eyeballs_delay=_NEXT_ADDRESS_S, interleave=1
            )
            try:
                _, connection = await loop.create_connection(
                    Connection,
                    sock=socket,
                    ssl=self._ssl,
                    server_hostname=host.rstrip(".") if self._ssl else None,
                )
            except BaseException:
                socket.close()
                raise
        except OSError as error:
            where = f"{host}:{self._origin.port}"
            said = f"Cannot connect to {where}: {one_line(str(error)) or type(error).__name__}"
            raise TransportError(f"no connection ({said})", was_sent=False) from None
        self._all.add(connection)
        return connection

    async def _resolved(self, host: str, port: int) -> list[Any]:
        """The server's addresses, each of several first in its turn."""
        loop = asyncio.get_running_loop()
        async with self._resolving:
            if loop.time() >= self._addresses_until:
                self._addresses = await loop.getaddrinfo(host, port, type=sockets.SOCK_STREAM)
                self._addresses_until = loop.time() + _ADDRESSES_KEPT_S
            self._addresses = [*self._addresses[1:], *self._addresses[:1]]
            return self._addresses
