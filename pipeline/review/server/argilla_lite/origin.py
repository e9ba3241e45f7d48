"""The server answers those who call it by its own name, and pages of its own only.

A page of another site can send requests to an address of this machine, also by a name of its own
that leads here (DNS rebinding). Such requests carry the other site's name.
"""

from __future__ import annotations

import socket
from collections.abc import Awaitable, Callable, MutableMapping
from ipaddress import ip_address
from typing import Any
from urllib.parse import urlsplit

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Any]]
Send = Callable[[Any], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]


class OwnOrigin:
    """ASGI: 403 for requests that name another host, or that come from another site's page."""

    def __init__(self, app: App, host: str) -> None:
        """``host``: the address that the server listens on."""
        self._app = app
        self._names = {"localhost", host.lower()}
        if not _is_loopback(host):  # others may call it by the machine's name
            self._names |= {socket.gethostname().lower(), socket.getfqdn().lower()}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket") or self.admits(_headers(scope)):
            await self._app(scope, receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
        else:
            head = [(b"content-type", b"text/plain; charset=utf-8")]
            await send({"type": "http.response.start", "status": 403, "headers": head})
            await send({"type": "http.response.body", "body": b"not this server's own origin"})

    def admits(self, headers: list[tuple[str, str]]) -> bool:
        """Whether a request with these headers is one of its own."""
        hosts = [value for name, value in headers if name == "host"]
        origins = [value for name, value in headers if name == "origin"]
        if len(hosts) != 1 or len(origins) > 1:
            return False
        host = _host_of(f"//{hosts[0]}")
        # A name of somebody's can lead here; an address cannot be made to.
        if host is None or not (host in self._names or _is_address(host)):
            return False
        return not origins or urlsplit(origins[0]).netloc.lower() == hosts[0].lower()


def _headers(scope: Scope) -> list[tuple[str, str]]:
    return [(name.decode("latin-1").lower(), value.decode("latin-1")) for name, value in
            scope["headers"]]  # fmt: skip


def _host_of(url: str) -> str | None:
    try:
        return urlsplit(url).hostname
    except ValueError:
        return None


def _is_address(host: str) -> bool:
    try:
        ip_address(host)
    except ValueError:
        return False
    return True


def _is_loopback(host: str) -> bool:
    return host == "localhost" or (_is_address(host) and ip_address(host).is_loopback)
