"""One POST to the server: its body read up to a limit, redirects not followed elsewhere."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import httpx

from prefloop.data.protocol import EngineFailed
from prefloop.pipeline.engines.openai.api_key import ApiKey
from prefloop.pipeline.engines.openai.server_words import one_line

LARGEST_BODY = 32 << 20
"""Bytes of a response, unpacked; more are not read. The longest answers take some 5 MB."""
_REDIRECTS = 3
_ENCODINGS = {"", "identity", "gzip", "deflate"}  # no others: they may unpack to anything


class TransportError(Exception):
    """No whole response came. ``was_sent``: the server may have begun to work on it."""

    def __init__(self, problem: str, *, was_sent: bool) -> None:
        super().__init__(problem)
        self.was_sent = was_sent


@dataclass(frozen=True)
class Response:
    """What came: ``body`` is unpacked and not longer than :data:`LARGEST_BODY`."""

    status: int
    headers: Mapping[str, str]
    body: bytes


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
            httpx.URL(base_url)
            self._client = httpx.AsyncClient(
                headers=all_headers,
                timeout=timeout_s,
                follow_redirects=False,
                limits=httpx.Limits(max_connections=1000, max_keepalive_connections=100),
            )
        except (httpx.InvalidURL, ValueError, OSError, ImportError) as error:
            raise EngineFailed(
                f"no client for {base_url} can be made: {key.blot(one_line(str(error)))}",
                "check base_url, and the environment's proxies (HTTPS_PROXY) and certificates",
            ) from None

    async def post(self, path: str, body: Mapping[str, Any]) -> Response:
        """The response to ``body``, whatever its status.

        Raises ``TransportError``, and ``EngineFailed`` for an address that cannot be asked and for
        a server that sends the request elsewhere.
        """
        content = json.dumps(body).encode("ascii")  # escapes also what no UTF-8 can hold
        url = self._base_url + path
        for _ in range(_REDIRECTS + 1):
            response = await self._post(url, content)
            if response.status not in (301, 302, 303, 307, 308):
                return response
            url = self._redirected(url, response)
        raise EngineFailed(
            f"{self._base_url} redirects in a circle (status {response.status})", "check base_url"
        )

    async def aclose(self) -> None:
        """Close the connections. Idempotent."""
        await self._client.aclose()

    async def _post(self, url: str, content: bytes) -> Response:
        try:
            # The client's own timeout is for each read; a server that trickles outlives it.
            async with (
                asyncio.timeout(self._timeout_s),
                self._client.stream("POST", url, content=content) as response,
            ):
                return Response(response.status_code, response.headers, await _body_of(response))
        except (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout) as error:
            raise self._lost(error, was_sent=False) from None
        except (httpx.UnsupportedProtocol, httpx.InvalidURL, UnicodeError) as error:
            raise EngineFailed(
                f"{self._base_url} cannot be asked: {self._key.blot(one_line(str(error)))}",
                "check base_url",
            ) from None
        except (TimeoutError, httpx.TimeoutException):
            problem = f"no complete answer within {self._timeout_s:g} s"
            raise TransportError(problem, was_sent=True) from None
        except (httpx.HTTPError, httpx.StreamError, OSError, ValueError) as error:
            raise self._lost(error, was_sent=True) from None

    def _lost(self, error: Exception, *, was_sent: bool) -> TransportError:
        said = self._key.blot(one_line(str(error))) or type(error).__name__
        return TransportError(f"no connection ({said})", was_sent=was_sent)

    def _redirected(self, url: str, response: Response) -> str:
        """Where a redirect leads, if that is the same server asked in the same way."""
        wanted = response.headers.get("location", "")
        try:
            target = str(httpx.URL(url).join(wanted))
        except (httpx.InvalidURL, ValueError):
            target = ""
        if response.status in (307, 308) and target and _origin(target) == _origin(url):
            return target
        shown = one_line(target.partition("?")[0].rpartition("@")[2]) or "nowhere"
        raise EngineFailed(
            f"{self._base_url} redirects to {self._key.blot(shown)} (status {response.status}); "
            "nothing was sent there",
            "if that is the server you mean, put its address into base_url",
        )


async def _body_of(response: httpx.Response) -> bytes:
    encoding = response.headers.get("content-encoding", "").strip().lower()
    if encoding not in _ENCODINGS:
        problem = (
            f"an answer in content-encoding {one_line(encoding, 40)!r}, which was not asked for"
        )
        raise TransportError(problem, was_sent=True)
    announced = response.headers.get("content-length", "")
    if announced.isascii() and announced.isdigit() and int(announced[:20]) > LARGEST_BODY:
        raise _too_large()
    pieces, size = [], 0
    async for piece in response.aiter_bytes():
        size += len(piece)
        if size > LARGEST_BODY:
            raise _too_large()
        pieces.append(piece)
    return b"".join(pieces)


def _too_large() -> TransportError:
    problem = f"an answer of more than {LARGEST_BODY >> 20} MiB, which is not read"
    return TransportError(problem, was_sent=True)


def _origin(url: str) -> tuple[str, str]:
    parts = urlsplit(url)
    return parts.scheme.lower(), parts.netloc.lower()
