"""A server that speaks what this project says of Google Cloud Storage's XML API, in memory: no
emulator of it is to be had as a package. An object has a generation, which conditions are about
(``x-goog-if-generation-match``) and which listings do not tell."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import format_datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape


@dataclass(frozen=True)
class Kept:
    """An object."""

    content: bytes
    generation: int
    modified: datetime

    @property
    def e_tag(self) -> str:
        return f'"{hashlib.md5(self.content).hexdigest()}"'


@contextmanager
def google_server(folder: Path) -> Iterator[dict[str, str]]:
    """The server, and what to have in the environment to talk to it; ``folder`` gets a file of
    credentials. Every bucket is there."""
    objects: dict[str, Kept] = {}
    generations = iter(range(1, 1 << 30))
    lock = threading.Lock()

    class Store(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _answer(self, status: int, body: bytes = b"", about: Kept | None = None) -> None:
            self.send_response(status)
            self.send_header("content-length", str(len(body)))
            if about:
                self.send_header("etag", about.e_tag)
                self.send_header("x-goog-generation", str(about.generation))
                self.send_header("last-modified", format_datetime(about.modified, usegmt=True))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        def do_PUT(self) -> None:
            name = unquote(urlsplit(self.path).path)
            content = self.rfile.read(int(self.headers.get("content-length", 0)))
            wanted = self.headers.get("x-goog-if-generation-match")
            with lock:
                there = objects[name].generation if name in objects else 0
                if wanted is not None and int(wanted) != there:
                    self._answer(412)
                    return
                made = Kept(content, next(generations), datetime.now(UTC))
                objects[name] = made
            self._answer(200, b"", made)

        def do_GET(self) -> None:
            asked = urlsplit(self.path)
            query = parse_qs(asked.query)
            if "list-type" in query:
                found = self._listed(unquote(asked.path).strip("/"), query)
                self._answer(200, found.encode())
            elif kept := objects.get(unquote(asked.path)):
                self._answer(200, kept.content, kept)
            else:
                self._answer(404)

        do_HEAD = do_GET  # noqa: N815

        def do_DELETE(self) -> None:
            with lock:
                gone = objects.pop(unquote(urlsplit(self.path).path), None)
            self._answer(204 if gone else 404)

        def _listed(self, bucket: str, query: dict[str, list[str]]) -> str:
            prefix, delimiter = (query.get(name, [""])[0] for name in ("prefix", "delimiter"))
            lines, folders = [], set()
            for path, kept in sorted(objects.items()):
                name = path.removeprefix(f"/{bucket}/")
                if name == path or not name.startswith(prefix):
                    continue
                rest = name[len(prefix) :]
                if delimiter and delimiter in rest:
                    folders.add(prefix + rest.partition(delimiter)[0] + delimiter)
                    continue
                lines.append(
                    f"<Contents><Key>{escape(name)}</Key><Size>{len(kept.content)}</Size>"
                    f"<LastModified>{kept.modified:%Y-%m-%dT%H:%M:%S.%fZ}</LastModified>"
                    f"<ETag>{escape(kept.e_tag)}</ETag></Contents>"
                )
            lines += [
                f"<CommonPrefixes><Prefix>{escape(one)}</Prefix></CommonPrefixes>"
                for one in sorted(folders)
            ]
            return f"<ListBucketResult>{''.join(lines)}</ListBucketResult>"

        def log_message(self, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Store)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    credentials = folder / "google.json"
    base = f"http://127.0.0.1:{server.server_port}"
    keys = dict.fromkeys(("client_email", "private_key", "private_key_id"), "")
    credentials.write_text(json.dumps({"gcs_base_url": base, "disable_oauth": True, **keys}))
    try:
        yield {"GOOGLE_SERVICE_ACCOUNT": str(credentials), "AWS_ALLOW_HTTP": "true"}
    finally:
        server.shutdown()
        server.server_close()
