"""A hub of our own: the part of its API that ``huggingface_hub`` publishes through, over HTTP."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import yaml

TOKEN = "hf_" + "a" * 34
_API = re.compile(r"/api/(dataset|model)s/([\w.-]+/[\w.-]+)(?:/(\w+)/main)?")
_LFS = re.compile(r"/(datasets/)?([\w.-]+/[\w.-]+)\.git/info/lfs/objects/batch")


@dataclass
class Repo:
    """What a repository holds; ``commits`` are the operations of each commit."""

    private: bool
    files: dict[str, bytes] = field(default_factory=dict)
    lfs: set[str] = field(default_factory=set)
    commits: list[list[dict[str, Any]]] = field(default_factory=list)

    @property
    def sha(self) -> str:
        return hashlib.sha1(str(len(self.commits)).encode()).hexdigest()

    def tags(self) -> list[str]:
        parts = self.files.get("README.md", b"").decode().split("---\n")
        return yaml.safe_load(parts[1]).get("tags", []) if len(parts) > 2 else []

    def write_to(self, folder: Path) -> Path:
        """The files as somebody has them who downloads them."""
        for name, content in self.files.items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        return folder


class HubServer(ThreadingHTTPServer):
    """``repos`` by kind and name, ``blobs`` of large files by their hash; ``sent`` are the hashes
    of those that were uploaded, ``breaks_after`` the number of them after which all are refused."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.repos: dict[tuple[str, str], Repo] = {}
        self.blobs: dict[str, bytes] = {}
        self.sent: list[str] = []
        self.paths: list[str] = []
        self.breaks_after: int | None = None
        self.lock = threading.Lock()


class _Handler(BaseHTTPRequestHandler):
    server: HubServer

    def do_GET(self) -> None:
        self._answer(b"")

    def do_POST(self) -> None:
        self._answer(self.rfile.read(int(self.headers.get("content-length", 0))))

    def do_PUT(self) -> None:
        self._answer(self.rfile.read(int(self.headers.get("content-length", 0))))

    def _answer(self, body: bytes) -> None:
        path = urlsplit(self.path).path
        with self.server.lock:
            self.server.paths.append(path)
            if self.command == "PUT":  # the address itself is the permission, as on the hub
                self._keep(path.rpartition("/")[2], body)
            elif self.headers.get("authorization") != f"Bearer {TOKEN}":
                self._send({"error": "Invalid username or password."}, 401)
            elif path == "/api/repos/create":
                self._create(json.loads(body))
            elif path == "/api/validate-yaml":
                self._validate(json.loads(body)["content"])
            elif found := _LFS.fullmatch(path):
                self._batch(json.loads(body)["objects"])
            elif found := _API.fullmatch(path):
                self._repo(found, body)
            else:
                self._send({"error": f"no {path}"}, 404)

    def _create(self, wanted: dict[str, Any]) -> None:
        name = f"{wanted['organization']}/{wanted['name']}"
        kind = wanted.get("type", "model")
        url = f"{self.server.url}/{'datasets/' if kind == 'dataset' else ''}{name}"
        if wanted["organization"] == "others":
            self._send({"error": "You don't have the rights to create there"}, 403)
        elif (kind, name) in self.server.repos:
            self._send({"error": "You already created this repo", "url": url}, 409)
        else:
            private = wanted.get("visibility") == "private"
            self.server.repos[kind, name] = Repo(private, {".gitattributes": b""})
            self._send({"url": url})

    def _validate(self, card: str) -> None:
        known = yaml.safe_load(card.split("---\n")[1])
        wrong = [] if known.get("license") != "no-such" else [{"message": '"license" is unknown'}]
        self._send({"errors": wrong, "warnings": []}, 400 if wrong else 200)

    def _batch(self, objects: list[dict[str, Any]]) -> None:
        self._send(
            {
                "transfer": "basic",
                "objects": [
                    one
                    if one["oid"] in self.server.blobs
                    else {
                        **one,
                        "actions": {"upload": {"href": f"{self.server.url}/lfs/{one['oid']}"}},
                    }
                    for one in objects
                ],
            }
        )

    def _keep(self, oid: str, body: bytes) -> None:
        if (
            self.server.breaks_after is not None
            and len(self.server.sent) >= self.server.breaks_after
        ):
            self._send({"error": "no more"}, 400)
            return
        assert hashlib.sha256(body).hexdigest() == oid
        self.server.blobs[oid] = body
        self.server.sent.append(oid)
        self._send({})

    def _repo(self, found: re.Match[str], body: bytes) -> None:
        kind, name, action = found.groups()
        repo = self.server.repos.get((kind, name))
        if repo is None:
            self._send({"error": "Repository not found"}, 404)
        elif action in (None, "revision"):
            siblings = [{"rfilename": one} for one in repo.files]
            self._send(
                {"id": name, "sha": repo.sha, "private": repo.private, "siblings": siblings,
                 "tags": repo.tags()}
            )  # fmt: skip
        elif action == "tree":
            self._send(
                [
                    {"type": "file", "path": one, "size": len(content), "oid": _git_hash(content)}
                    for one, content in repo.files.items()
                ]
            )
        elif action == "preupload":
            self._send({"files": [_mode(repo, one) for one in json.loads(body)["files"]]})
        elif action == "commit":
            self._commit(kind, name, [json.loads(line) for line in body.splitlines()])

    def _commit(self, kind: str, name: str, lines: list[dict[str, Any]]) -> None:
        repo = self.server.repos[kind, name]
        for line in lines[1:]:
            value = line["value"]
            if line["key"] == "file":
                repo.files[value["path"]] = base64.b64decode(value["content"])
                repo.lfs.discard(value["path"])
            elif line["key"] == "lfsFile":
                repo.files[value["path"]] = self.server.blobs[value["oid"]]
                repo.lfs.add(value["path"])
            else:
                del repo.files[value["path"]]
        repo.commits.append(lines[1:])
        place = "datasets/" if kind == "dataset" else ""
        url = f"{self.server.url}/{place}{name}/commit/{repo.sha}"
        self._send({"commitUrl": url, "commitOid": repo.sha})

    def _send(self, value: Any, status: int = 200) -> None:
        data = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *args: Any) -> None:
        pass


def _mode(repo: Repo, wanted: dict[str, Any]) -> dict[str, Any]:
    path = wanted["path"]
    large = path.endswith((".parquet", ".safetensors"))
    content = repo.files.get(path)
    oid = None
    if content is not None:
        oid = hashlib.sha256(content).hexdigest() if path in repo.lfs else _git_hash(content)
    mode = "lfs" if large else "regular"
    return {"path": path, "uploadMode": mode, "shouldIgnore": False, "oid": oid}


def _git_hash(content: bytes) -> str:
    return hashlib.sha1(f"blob {len(content)}\0".encode() + content).hexdigest()


@contextmanager
def hub_server(monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    """A running hub that ``huggingface_hub`` talks to, with a token that it takes."""
    from huggingface_hub import constants

    server = HubServer()
    monkeypatch.setenv("HF_ENDPOINT", server.url)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)  # its protocol is another's
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
