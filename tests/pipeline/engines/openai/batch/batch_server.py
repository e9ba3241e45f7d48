"""A real server that speaks OpenAI's protocol of files and batches, and fails in all its ways.

``POST /v1/files`` (a form with ``purpose=batch``), ``POST /v1/batches``, ``GET /v1/batches/ID``,
``GET /v1/batches`` page by page, ``GET /v1/files/ID/content``; ``POST /v1/chat/completions``
answers the same at once. Jobs end as the server's ``endings`` say, one after the other.
"""

from __future__ import annotations

import email
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

Line = dict[str, Any]
Answer = Callable[[dict[str, Any]], tuple[int, Any]]
"""Status and body of what is answered to a request's body."""
Ending = Callable[["BatchServer", "Job"], None]
"""What becomes of a job when it is over."""
Fault = Callable[["Handler"], bool]
"""Answers a call in the place of the server; false where the server goes on as ever."""


@dataclass
class Job:
    """A job: its row, its requests, and how often it is looked at before it is over."""

    row: dict[str, Any]
    requests: list[dict[str, Any]]
    looks: int
    ending: Ending
    seen: list[str] = field(default_factory=list)


def hello(body: dict[str, Any]) -> tuple[int, Any]:
    """A well-formed answer of 10 prompt tokens and 5 tokens, that says what was asked last."""
    text = f"to {body['messages'][-1]['content']}"
    choice: dict[str, Any] = {"message": {"content": text}, "finish_reason": "stop"}
    return 200, {"choices": [choice], "usage": {"prompt_tokens": 10, "completion_tokens": 5}}


def line_of(custom_id: str, status: int, body: Any) -> Line:
    """A line of an output file."""
    response = {"status_code": status, "request_id": f"r-{custom_id[:6]}", "body": body}
    return {"id": f"l-{custom_id[:6]}", "custom_id": custom_id, "response": response, "error": None}


def unrun_line(custom_id: str, code: str) -> Line:
    """A line of an error file for a request that its job never came to."""
    error = {"code": code, "message": "This request could not be executed."}
    return {"id": f"l-{custom_id[:6]}", "custom_id": custom_id, "response": None, "error": error}


def completed(
    change: Callable[[list[Line]], list[Any]] = lambda lines: lines, status: str = "completed"
) -> Ending:
    """All requests are answered; ``change`` makes of the lines what is written, which may be bytes
    that are no lines."""

    def end(server: BatchServer, job: Job) -> None:
        lines = [
            line_of(request["custom_id"], *server.answer(request["body"]))
            for request in job.requests
        ]
        server.finish(job, status, change(lines))

    return end


def ended_early(status: str, done: int, code: str | None = None) -> Ending:
    """The job is ``expired`` or ``cancelled`` when ``done`` requests were answered; the others have
    lines in the error file with ``code``, where there is one."""

    def end(server: BatchServer, job: Job) -> None:
        first, rest = job.requests[:done], job.requests[done:]
        lines = [line_of(one["custom_id"], *server.answer(one["body"])) for one in first]
        errors = [unrun_line(one["custom_id"], code) for one in rest] if code else []
        server.finish(job, status, lines, errors)

    return end


def failed(*errors: dict[str, Any]) -> Ending:
    """Validation finds ``errors``, and nothing is begun."""

    def end(server: BatchServer, job: Job) -> None:
        job.row |= {"status": "failed", "errors": {"object": "list", "data": list(errors)}}

    return end


class Handler(BaseHTTPRequestHandler):
    """Speaks the protocol, but for the calls that the server's faults answer."""

    server: BatchServer
    protocol_version = "HTTP/1.1"
    content = b""

    def do_POST(self) -> None:
        self.content = self.rfile.read(int(self.headers["content-length"]))
        self._answer("POST")

    def do_GET(self) -> None:
        self._answer("GET")

    def _answer(self, method: str) -> None:
        path = urlsplit(self.path).path.removeprefix("/v1")
        server = self.server
        with server.lock:
            server.calls.append(f"{method} {path}")
            fault = server.fault_of(f"{method} {path}")
        try:
            if fault is None or not fault(self):
                with server.lock:
                    status, body = server.handle(method, path, self)
                self.send(status, body)
        except (BrokenPipeError, ConnectionResetError):
            pass

    def send(self, status: int, body: Any, **headers: str) -> None:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(data)))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(data)

    def cut(self) -> None:
        """Close the connection without a word."""
        self.close_connection = True
        self.connection.shutdown(socket.SHUT_RDWR)

    def log_message(self, *args: Any) -> None:
        pass


class BatchServer(ThreadingHTTPServer):
    """``answer`` gives the answers, ``endings`` what becomes of jobs, in turn and the last from
    then on; ``faults`` are what calls get first, by method and path. So many ``looks`` at a job are
    answered before it is over. ``calls`` holds what was called, ``jobs`` all jobs by id."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, *endings: Ending, answer: Answer = hello, looks: int = 1) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.endings = list(endings) or [completed()]
        self.answer = answer
        self.looks = looks
        self.faults: dict[str, list[Fault]] = {}
        self.files: dict[str, bytes] = {}
        self.jobs: dict[str, Job] = {}
        self.calls: list[str] = []
        self.live: list[dict[str, Any]] = []
        self.keeps_metadata = True
        self.lock = threading.RLock()
        self.url = f"http://127.0.0.1:{self.server_port}/v1"

    @property
    def asked(self) -> list[list[str]]:
        """What each job was asked: the last message of each of its requests."""
        return [
            [str(one["body"]["messages"][-1]["content"]) for one in job.requests]
            for job in self.jobs.values()
        ]

    def fault_of(self, call: str) -> Fault | None:
        """The next fault of a call, by the longest beginning of it that has any."""
        for start in sorted(self.faults, key=len, reverse=True):
            if call.startswith(start) and self.faults[start]:
                return self.faults[start].pop(0)
        return None

    def handle(self, method: str, path: str, handler: Handler) -> tuple[int, Any]:
        """What the protocol says to a call."""
        match (method, *path.strip("/").split("/")):
            case ("POST", "files"):
                return self._take_file(handler)
            case ("POST", "batches"):
                return self._begin(json.loads(handler.content))
            case ("GET", "batches"):
                return self._list(parse_qs(urlsplit(handler.path).query))
            case ("GET", "batches", found) if found in self.jobs:
                return self._look(self.jobs[found])
            case ("GET", "files", found, "content") if found in self.files:
                return 200, self.files[found]
            case ("POST", "chat", "completions"):
                self.live.append(json.loads(handler.content))
                return self.answer(self.live[-1])
        return 404, {"error": {"message": f"no {path}", "code": None}}

    def finish(
        self, job: Job, status: str, lines: list[Any], errors: list[Any] | None = None
    ) -> None:
        """End ``job`` with these lines in its files."""
        for key, of_file in (("output_file_id", lines), ("error_file_id", errors or [])):
            if of_file:
                job.row[key] = self._put(b"".join(_written(line) for line in of_file))
        bad = sum(isinstance(one, dict) for one in errors or [])
        good = sum(isinstance(one, dict) for one in lines)
        job.row["request_counts"] = {
            "total": len(job.requests), "completed": min(good, len(job.requests)), "failed": bad,
        }  # fmt: skip
        job.row["status"] = status

    def _take_file(self, handler: Handler) -> tuple[int, Any]:
        head = f"content-type: {handler.headers['content-type']}\r\n\r\n".encode()
        form = email.message_from_bytes(head + handler.content)
        parts = {part.get_param("name", header="content-disposition"): part.get_payload(decode=True)
                 for part in form.get_payload()}  # fmt: skip
        if parts.get("purpose") != b"batch" or not parts.get("file"):
            return 400, {"error": {"message": "purpose must be batch", "param": "purpose"}}
        return 200, {"id": self._put(parts["file"]), "object": "file", "purpose": "batch"}

    def _begin(self, asked: dict[str, Any]) -> tuple[int, Any]:
        requests = [json.loads(line) for line in self.files[asked["input_file_id"]].splitlines()]
        ids = [one["custom_id"] for one in requests]
        assert len(set(ids)) == len(ids), "a custom_id twice"
        assert all(one["url"] == asked["endpoint"] for one in requests)
        row = {
            "id": f"batch_{len(self.jobs)}",
            "object": "batch",
            "status": "validating",
            "created_at": int(time.time()),
            "request_counts": {"total": 0, "completed": 0, "failed": 0},
            **asked,
        }
        if not self.keeps_metadata:
            del row["metadata"]
        ending = self.endings.pop(0) if len(self.endings) > 1 else self.endings[0]
        self.jobs[row["id"]] = Job(row, requests, self.looks, ending)
        return 200, row

    def _look(self, job: Job) -> tuple[int, Any]:
        if job.looks > 0:
            job.looks -= 1
            job.row["status"] = "in_progress"
            job.row["request_counts"] = {"total": len(job.requests), "completed": 1, "failed": 0}
        elif job.row["status"] in ("validating", "in_progress"):
            job.ending(self, job)
        job.seen.append(job.row["status"])
        return 200, job.row

    def _list(self, query: dict[str, list[str]]) -> tuple[int, Any]:
        rows = [job.row for job in reversed(self.jobs.values())]
        after = query.get("after", [""])[0]
        ids = [row["id"] for row in rows]
        start = ids.index(after) + 1 if after else 0
        page = rows[start : start + min(int(query.get("limit", ["20"])[0]), 2)]
        more = start + len(page) < len(rows)
        return 200, {"object": "list", "data": page, "has_more": more}

    def _put(self, content: bytes) -> str:
        self.files[f"file-{len(self.files)}"] = content
        return f"file-{len(self.files) - 1}"


def status(code: int, message: str = "no", **headers: str) -> Fault:
    """An error in OpenAI's format."""

    def fault(handler: Handler) -> bool:
        handler.send(code, {"error": {"message": message, "type": "x"}}, **headers)
        return True

    return fault


def cut(handler: Handler) -> bool:
    """The connection ends before anything is done."""
    handler.cut()
    return True


def done_but_cut(handler: Handler) -> bool:
    """What was asked is done, and the connection ends before a word of it."""
    server = handler.server
    with server.lock:
        server.handle(handler.command, urlsplit(handler.path).path.removeprefix("/v1"), handler)
    handler.cut()
    return True


def half(handler: Handler) -> bool:
    """Half of a file comes, in a response that says it is whole."""
    server = handler.server
    with server.lock:
        path = urlsplit(handler.path).path.removeprefix("/v1")
        found, data = server.handle(handler.command, path, handler)
    handler.send(found, data[: len(data) // 2])
    return True


@contextmanager
def batch_server(*endings: Ending, answer: Answer = hello, looks: int = 1) -> Iterator[BatchServer]:
    """A running server at a free port."""
    server = BatchServer(*endings, answer=answer, looks=looks)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()


def _written(line: Any) -> bytes:
    return line if isinstance(line, bytes) else json.dumps(line).encode() + b"\n"
