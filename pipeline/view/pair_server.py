"""All pairs of a large run, served to the browser of this machine.

Whoever may read the answers of a run is decided by the rights of its files, so the server must not
give them to others: it listens on loopback alone, every address begins with a token that only
its owner was told, and a request that names another host is refused (a page elsewhere whose name
was pointed at this machine).
"""

from __future__ import annotations

import logging
import secrets
import sys
import threading
from collections.abc import Mapping
from functools import lru_cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from prefloop.data.arrays import Ints
from prefloop.data.errors import InputError, PrefloopError
from prefloop.pipeline.view.pair_facts import PairQuery, select
from prefloop.pipeline.view.pair_texts import BrowsedPairs, listed_pairs, shown_pairs
from prefloop.pipeline.view.view_page import render_view, script_json

_HOST = "127.0.0.1"
_MOST_LISTED = 200
_IDLE_S = 30
"""A connection that says nothing for so long is closed."""
_HEADERS = {
    "Cache-Control": "no-store",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}
_log = logging.getLogger(__name__)


class PairServer:
    """Serves from when it is made until it is closed; a context manager."""

    def __init__(self, pairs: BrowsedPairs, *, seed: int = 0, port: int = 0) -> None:
        """``port`` 0 is a free one. Raises ``InputError`` for one that is taken."""
        token = secrets.token_urlsafe(24)
        answers = _Answers(pairs, seed)
        try:
            self._server = _Server((_HOST, port), _Handler)
        except (OSError, OverflowError) as error:
            raise InputError(f"--port {port}: cannot be used ({error}): choose another") from None
        number = self._server.server_address[1]
        self._server.answers = answers
        self._server.token = token
        self._server.hosts = frozenset(f"{name}:{number}" for name in (_HOST, "localhost"))
        self.url = f"http://{_HOST}:{number}/{token}/"
        """The page; whoever knows it can read the pairs."""
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()

    def wait(self) -> None:
        """Until it is closed, or interrupted."""
        self._thread.join()

    def close(self) -> None:
        """Stop serving."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def __enter__(self) -> PairServer:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"PairServer({self.url})"


class _Answers:
    """What is answered to whom may ask."""

    def __init__(self, pairs: BrowsedPairs, seed: int) -> None:
        self._pairs = pairs
        self._seed = seed
        self._search = lru_cache(maxsize=16)(pairs.search)
        self._lock = threading.Lock()

    def page(self) -> str:
        return render_view(self._pairs, seed=self._seed)

    def listed(self, query: Mapping[str, str]) -> dict[str, Any]:
        """A piece of the list of the pairs that ``query`` asks for."""
        wanted = PairQuery.of(query)
        first = _whole(query, "from", 0)
        count = min(_whole(query, "count", 50), _MOST_LISTED)
        rows = select(self._pairs.facts, wanted, self._found(wanted.search), self._seed)
        here = rows[first : first + count].tolist()
        return {"total": len(rows), "from": first, "pairs": listed_pairs(self._pairs, here)}

    def pair(self, query: Mapping[str, str]) -> dict[str, Any] | None:
        row = _whole(query, "id", 0)
        if row >= len(self._pairs.facts):
            return None
        return shown_pairs(self._pairs, [row])[0]

    def _found(self, text: str) -> Ints | None:
        if not text:
            return None
        with self._lock:  # texts are read once, not once for each key pressed meanwhile
            return self._search(text)


def _whole(query: Mapping[str, str], name: str, default: int) -> int:
    text = query.get(name, str(default))
    if not (text.isascii() and text.isdigit() and len(text) < 12):
        raise InputError(f"{name} {text!r}: is no whole number")
    return int(text)


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    answers: _Answers
    token: str
    hosts: frozenset[str]

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A browser that asked and went away is no fault."""
        if not isinstance(sys.exception(), ConnectionError | TimeoutError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    timeout = _IDLE_S
    protocol_version = "HTTP/1.1"
    server_version, sys_version = "prefloop", ""

    def do_GET(self) -> None:
        if self.headers.get_all("Host") not in [[host] for host in self.server.hosts]:
            self._say(403, {"error": "this host is not served"})
            return
        address = urlsplit(self.path)
        token, _, path = address.path.removeprefix("/").partition("/")
        if not secrets.compare_digest(token.encode(), self.server.token.encode()):
            self._say(404, {"error": "not found: open the address that prefloop printed"})
            return
        try:
            self._answer(path, dict(parse_qsl(address.query)))
        except InputError as error:
            self._say(400, {"error": str(error)})
        except PrefloopError as error:
            self._say(500, {"error": str(error)})

    def _answer(self, path: str, query: Mapping[str, str]) -> None:
        answers = self.server.answers
        if path == "":
            self._send(200, "text/html; charset=utf-8", answers.page())
        elif path == "api/pairs":
            self._say(200, answers.listed(query))
        elif path == "api/pair" and (found := answers.pair(query)) is not None:
            self._say(200, found)
        else:
            self._say(404, {"error": "not found"})

    def _say(self, status: int, value: Any) -> None:
        self._send(status, "application/json", script_json(value))

    def _send(self, status: int, kind: str, text: str) -> None:
        body = text.encode()
        self.send_response(status)
        for name, value in {**_HEADERS, "Content-Type": kind}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """At level debug alone: addresses hold the token."""
        _log.debug(format, *args)
