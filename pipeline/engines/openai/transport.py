"""Requests to one server: their answers read up to a limit, redirects not followed elsewhere.

What is asked often, a POST of JSON, goes over ``connections`` of our own, at a fifth of what it
costs through aiohttp. Files, and addresses that are out of the ordinary, go through aiohttp. Where
the environment names a proxy that may be meant for the server, all goes through httpx, which knows
more of proxies.
"""

from __future__ import annotations

import asyncio
import json
import secrets
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol
from urllib.parse import urlsplit
from urllib.request import getproxies

import msgspec

from prefloop.data.protocol import EngineFailed
from prefloop.pipeline.engines.openai.api_key import ApiKey
from prefloop.pipeline.engines.openai.connections.kept_alive import (
    IDLE_S,
    Cookies,
    KeptAlive,
    is_plain,
)
from prefloop.pipeline.engines.openai.connections.response import (
    LARGEST_BODY,
    Response,
    TransportError,
    check_headers_of_answer,
    too_large,
)
from prefloop.pipeline.engines.openai.server_words import one_line

if TYPE_CHECKING:
    import ssl

    import aiohttp

_PIECE = 1 << 20
"""Bytes of a file that are sent at once."""
_REDIRECTS = 3
_REDIRECTED = frozenset([301, 302, 303, 307, 308])
_encode = msgspec.json.Encoder().encode


class ServerFailed(EngineFailed):
    """This server cannot be used as the config says; another might."""


@dataclass(frozen=True, slots=True)
class Upload:
    """A file, called ``name``, and the ``fields`` beside it, as a form. It is read while it is
    sent."""

    path: Path
    name: str
    fields: Mapping[str, str]
    boundary: str = field(default_factory=lambda: f"----prefloop-{secrets.token_hex(12)}")

    @property
    def headers(self) -> dict[str, str]:
        """What tells the server of its form and its length."""
        size = len(self._head) + self.path.stat().st_size + len(self._tail)
        kind = f"multipart/form-data; boundary={self.boundary}"
        return {"content-type": kind, "content-length": str(size)}

    async def pieces(self) -> AsyncIterator[bytes]:
        """All of it, bit by bit."""
        yield self._head
        with self.path.open("rb") as file:
            while piece := await asyncio.to_thread(file.read, _PIECE):
                yield piece
        yield self._tail

    @property
    def _head(self) -> bytes:
        parts = [
            f'--{self.boundary}\r\ncontent-disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'
            for name, value in self.fields.items()
        ]
        parts.append(
            f'--{self.boundary}\r\ncontent-disposition: form-data; name="file"; '
            f'filename="{self.name}"\r\ncontent-type: application/octet-stream\r\n\r\n'
        )
        return "".join(parts).encode()

    @property
    def _tail(self) -> bytes:
        return f"\r\n--{self.boundary}--\r\n".encode()


@dataclass(frozen=True, slots=True)
class Target:
    """Where a body is to be put that is too long to be held: ``path``, up to ``most`` bytes. One of
    another status than 200 is held as ever."""

    path: Path
    most: int


class _Unaskable(Exception):
    """The address is none that can be asked."""


class _Client(Protocol):
    """Sends what it is given, and reads what comes; raises ``TransportError`` or ``_Unaskable``."""

    async def send(
        self, url: str, content: bytes | Upload | None, target: Target | None = None
    ) -> Response:
        """The response to a POST of ``content``, or to a GET where there is none."""
        ...

    async def aclose(self) -> None: ...


class Transport:
    """HTTP to one server, with its key. Use it from one event loop."""

    def __init__(
        self, base_url: str, key: ApiKey, timeout_s: float, headers: Mapping[str, str]
    ) -> None:
        """``headers`` are sent beside ours, by their names in lower case. Sends nothing. Raises
        ``EngineFailed`` for an address that is none."""
        self._base_url = base_url.rstrip("/")
        self._key = key
        self._timeout_s = timeout_s
        all_headers = {
            "authorization": f"Bearer {key.value}",
            "content-type": "application/json",
            "accept": "application/json",
            "accept-encoding": "gzip",
            "user-agent": "prefloop",
            **headers,
        }
        try:
            self._client = _client_for(base_url, all_headers, timeout_s)
        except (_Unaskable, ValueError, OSError, ImportError) as error:
            raise EngineFailed(
                f"no client for {base_url} can be made: {key.blot(one_line(str(error)))}",
                "check base_url, and the environment's proxies (HTTPS_PROXY) and certificates",
            ) from None

    async def post(self, path: str, body: Mapping[str, Any]) -> Response:
        """The response to ``body``, whatever its status.

        Raises ``TransportError``, and ``EngineFailed`` for an address that cannot be asked and for
        a server that sends the request elsewhere.
        """
        return await self._asked(path, written(body))

    async def get(self, path: str) -> Response:
        """What is at ``path``, whatever the status; raises as :meth:`post` does."""
        return await self._asked(path, None)

    async def upload(self, path: str, upload: Upload, timeout_s: float) -> Response:
        """The response to a file, which may take ``timeout_s``; raises as :meth:`post` does."""
        return await self._asked(path, upload, timeout_s=timeout_s)

    async def download(self, path: str, target: Target, timeout_s: float) -> Response:
        """What is at ``path``, put into ``target`` where the status is 200 (the response's body is
        empty then); raises as :meth:`post` does."""
        return await self._asked(path, None, target=target, timeout_s=timeout_s)

    async def _asked(
        self,
        path: str,
        content: bytes | Upload | None,
        *,
        target: Target | None = None,
        timeout_s: float | None = None,
    ) -> Response:
        url = self._base_url + path
        for _ in range(_REDIRECTS + 1):
            response = await self._once(url, content, target, timeout_s or self._timeout_s)
            if response.status not in _REDIRECTED:
                return response
            url = self._redirected(url, response)
        raise ServerFailed(
            f"{self._base_url} redirects in a circle (status {response.status})", "check base_url"
        )

    async def aclose(self) -> None:
        """Close the connections. Idempotent."""
        await self._client.aclose()

    async def _once(
        self, url: str, content: bytes | Upload | None, target: Target | None, timeout_s: float
    ) -> Response:
        try:
            # A client's own timeout may be for each read; a server that trickles outlives it.
            async with asyncio.timeout(timeout_s):
                return await self._client.send(url, content, target)
        except TransportError as error:
            said = self._key.blot(str(error))
            raise TransportError(said, was_sent=error.was_sent) from None
        except (_Unaskable, UnicodeError) as error:
            raise ServerFailed(
                f"{self._base_url} cannot be asked: {self._key.blot(one_line(str(error)))}",
                "check base_url",
            ) from None
        except TimeoutError:
            problem = f"no complete answer within {timeout_s:g} s"
            raise TransportError(problem, was_sent=True) from None
        except (OSError, ValueError) as error:
            said = self._key.blot(_said(error))
            raise TransportError(said, was_sent=True) from None

    def _redirected(self, url: str, response: Response) -> str:
        """Where a redirect leads, if that is the same server asked in the same way."""
        import httpx

        wanted = response.headers.get("location", "")
        try:
            target = str(httpx.URL(url).join(wanted))
        except (httpx.InvalidURL, ValueError):
            target = ""
        if response.status in (307, 308) and target and _origin(target) == _origin(url):
            return target
        shown = one_line(target.partition("?")[0].rpartition("@")[2]) or "nowhere"
        raise ServerFailed(
            f"{self._base_url} redirects to {self._key.blot(shown)} (status {response.status}); "
            "nothing was sent there",
            "if that is the server you mean, put its address into base_url",
        )


def written(value: Any) -> bytes:
    """``value`` as JSON."""
    try:
        return _encode(value)
    except (UnicodeError, TypeError, msgspec.MsgspecError, RecursionError):
        return json.dumps(value).encode("ascii")  # escapes also what no UTF-8 can hold


def _client_for(base_url: str, headers: Mapping[str, str], timeout_s: float) -> _Client:
    if _may_need_proxy(base_url):
        return _ThroughProxy(base_url, headers, timeout_s)
    return _Direct(base_url, headers)


def _may_need_proxy(url: str) -> bool:
    """Whether the environment names a proxy that requests to ``url`` may have to go through; the
    plain forms of NO_PROXY are known here, httpx knows the others."""
    parts, proxies = urlsplit(url), getproxies()
    if not (proxies.get(parts.scheme.lower()) or proxies.get("all")):
        return False
    host = (parts.hostname or "").lower()
    spared = [one.strip().lower() for one in proxies.get("no", "").split(",")]
    return not any(
        one == "*" or (one and (host == one or host.endswith(f".{one.lstrip('.')}")))
        for one in spared
    )


class _Direct:
    """From here to the server: what is asked often over connections of our own, the rest by
    aiohttp. Cookies are those of both."""

    def __init__(self, base_url: str, headers: Mapping[str, str]) -> None:
        import yarl

        yarl.URL(base_url)
        self._headers = headers
        self._ssl = _trusted() if urlsplit(base_url).scheme.lower() == "https" else None
        self._urls: dict[str, yarl.URL] = {}
        self._session: aiohttp.ClientSession | None = None
        self._cookies = Cookies()
        self._base_url = base_url
        self._is_plain = is_plain(base_url)
        self._kept_alive: KeptAlive | None = None

    async def send(
        self, url: str, content: bytes | Upload | None, target: Target | None = None
    ) -> Response:
        """See :class:`_Client`."""
        if self._is_plain and target is None and isinstance(content, bytes):
            return await (self._kept_alive or self._connected()).post(url, content)
        import aiohttp

        session = self._session or self._opened()
        data, more = _sent(content)
        try:
            async with session.request(
                _method(content),
                self._address(url),
                data=data,
                headers=more,
                allow_redirects=False,
            ) as answer:
                into = target if answer.status == 200 else None
                check_headers_of_answer(answer.headers, into.most if into else LARGEST_BODY)
                body = await _whole(answer.content.iter_any(), into)
                return Response(answer.status, answer.headers, body)
        except aiohttp.ClientConnectorError as error:
            raise TransportError(_said(error), was_sent=False) from None
        except aiohttp.InvalidURL as error:
            raise _Unaskable(str(error)) from None
        except TimeoutError:  # some are a ClientError too
            raise
        except (aiohttp.ClientError, aiohttp.http_exceptions.HttpProcessingError) as error:
            raise TransportError(_said(error), was_sent=True) from None

    async def aclose(self) -> None:
        """See :class:`_Client`."""
        if self._kept_alive is not None:
            self._kept_alive.close()
        if self._session is not None:
            await self._session.close()

    def _connected(self) -> KeptAlive:
        self._kept_alive = KeptAlive(self._base_url, self._headers, self._ssl, self._cookies)
        return self._kept_alive

    def _opened(self) -> aiohttp.ClientSession:
        import aiohttp

        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(
                limit=0,  # the engine's max_concurrency is the limit
                ssl=True if self._ssl is None else self._ssl,
                keepalive_timeout=IDLE_S,
            ),
            headers=self._headers,
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=None),
            cookie_jar=self._cookies.opened(),
        )
        return self._session

    def _address(self, url: str) -> Any:
        import yarl

        found = self._urls.get(url)
        if found is None:
            found = self._urls[url] = yarl.URL(url)
        return found


class _ThroughProxy:
    """Through the environment's proxy, by httpx."""

    def __init__(self, base_url: str, headers: Mapping[str, str], timeout_s: float) -> None:
        import httpx

        try:
            httpx.URL(base_url)
            self._client = httpx.AsyncClient(
                headers=dict(headers),
                timeout=timeout_s,
                follow_redirects=False,
                limits=httpx.Limits(max_connections=1000, max_keepalive_connections=None),
            )
        except httpx.InvalidURL as error:
            raise _Unaskable(str(error)) from None

    async def send(
        self, url: str, content: bytes | Upload | None, target: Target | None = None
    ) -> Response:
        """See :class:`_Client`."""
        import httpx

        data, more = _sent(content)
        try:
            async with self._client.stream(
                _method(content), url, content=data, headers=more
            ) as answer:
                into = target if answer.status_code == 200 else None
                check_headers_of_answer(answer.headers, into.most if into else LARGEST_BODY)
                body = await _whole(answer.aiter_bytes(), into)
                return Response(answer.status_code, answer.headers, body)
        except (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout) as error:
            raise TransportError(_said(error), was_sent=False) from None
        except (httpx.UnsupportedProtocol, httpx.InvalidURL) as error:
            raise _Unaskable(str(error)) from None
        except httpx.TimeoutException:
            raise TimeoutError from None
        except (httpx.HTTPError, httpx.StreamError) as error:
            raise TransportError(_said(error), was_sent=True) from None

    async def aclose(self) -> None:
        """See :class:`_Client`."""
        await self._client.aclose()


def _method(content: bytes | Upload | None) -> str:
    return "GET" if content is None else "POST"


def _sent(
    content: bytes | Upload | None,
) -> tuple[bytes | AsyncIterator[bytes] | None, dict[str, str]]:
    """What a client is given, and the headers that go with it alone."""
    if isinstance(content, Upload):
        return content.pieces(), content.headers
    return content, {}


def _trusted() -> ssl.SSLContext:
    """The certificates that httpx trusts: those of the environment, or certifi's."""
    import httpx

    return httpx.create_ssl_context()


async def _whole(pieces: AsyncIterator[bytes], target: Target | None = None) -> bytes:
    if target is not None:
        await _put(pieces, target)
        return b""
    found, size = [], 0
    async for piece in pieces:
        size += len(piece)
        if size > LARGEST_BODY:
            raise too_large(LARGEST_BODY)
        found.append(piece)
    return found[0] if len(found) == 1 else b"".join(found)


async def _put(pieces: AsyncIterator[bytes], target: Target) -> None:
    """Write ``pieces`` into the file, which is there when all of them are."""
    size, beside = 0, target.path.with_name(f".{target.path.name}.part")
    with beside.open("wb") as file:
        async for piece in pieces:
            size += len(piece)
            if size > target.most:
                raise too_large(target.most)
            try:
                await asyncio.to_thread(file.write, piece)
            except OSError as error:
                raise EngineFailed(
                    f"{target.path}: cannot be written: {error.strerror}",
                    "make room; the same command resumes",
                ) from None
    beside.replace(target.path)


def _said(error: Exception) -> str:
    return f"no connection ({one_line(str(error)) or type(error).__name__})"


def _origin(url: str) -> tuple[str, str]:
    parts = urlsplit(url)
    return parts.scheme.lower(), parts.netloc.lower()
