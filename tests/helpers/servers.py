"""Real servers for tests: vLLM's own OpenAI server, and a small one that misbehaves on order."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

Reply = Callable[["Handler"], None]
"""Answers one POST; ``handler.body`` is the request's JSON, ``handler.path`` its path."""


class Handler(BaseHTTPRequestHandler):
    """Answers each POST with the server's next reply, and the last one from then on."""

    server: FaultyServer
    body: Any

    def do_POST(self) -> None:
        length = int(self.headers.get("content-length", 0))
        self.body = json.loads(self.rfile.read(length))
        with self.server.lock:
            self.server.requests.append((time.monotonic(), self.path, self.body))
            self.server.keys.append(self.headers.get("authorization", ""))
            replies = self.server.replies
            reply = replies.pop(0) if len(replies) > 1 else replies[0]
            self.server.now += 1
            self.server.most = max(self.server.most, self.server.now)
        try:
            reply(self)
        except (BrokenPipeError, ConnectionResetError):
            pass  # the client gave up, as some tests want
        finally:
            with self.server.lock:
                self.server.now -= 1

    def do_GET(self) -> None:
        """Lists the server's models, where it has any."""
        with self.server.lock:
            self.server.looks.append(self.path)
        if self.server.models is None:
            self.send(404, "{}")
        else:
            self.send(200, json.dumps({"object": "list", "data": self.server.models}))

    def send(self, status: int, text: str | bytes, **headers: str) -> None:
        data = text.encode("utf-8", "surrogatepass") if isinstance(text, str) else text
        if status == 200 and self.command == "POST":
            with self.server.lock:
                self.server.answered.append(self.body)
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(data)))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *args: Any) -> None:
        pass


class FaultyServer(ThreadingHTTPServer):
    """``requests`` holds (time, path, body) of what came, ``keys`` the headers that hold the key,
    ``answered`` the bodies of what was answered with status 200; ``most`` is the most at once.
    ``models`` are the rows of ``GET /models``, null where it has none."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, replies: list[Reply], port: int = 0) -> None:
        super().__init__(("127.0.0.1", port), Handler)
        self.replies = replies
        self.requests: list[tuple[float, str, Any]] = []
        self.keys: list[str] = []
        self.answered: list[Any] = []
        self.models: list[dict[str, Any]] | None = None
        self.looks: list[str] = []
        self.lock = threading.Lock()
        self.now = self.most = self.sent = 0
        self.url = f"http://127.0.0.1:{self.server_port}/v1"


@contextmanager
def faulty_server(*replies: Reply, port: int = 0) -> Iterator[FaultyServer]:
    """A running server that gives ``replies`` in turn, at a free port, or at ``port``."""
    server = FaultyServer(list(replies), port)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()


def good(text: str = "hello", *, seconds: float = 0.0, **choice: Any) -> Reply:
    """A well-formed chat answer of 10 prompt tokens and 5 tokens."""
    body = {
        "choices": [
            {"message": {"content": text}, "finish_reason": "stop", "logprobs": None, **choice}
        ],
        "usage": {"prompt_tokens": 10, "completion_tokens": 5},
    }

    def reply(handler: Handler) -> None:
        time.sleep(seconds)
        handler.send(200, json.dumps(body))

    return reply


def capped(most: int, reply: Reply, **headers: str) -> Reply:
    """``reply`` to as many as ``most`` at once; beyond that, status 429."""
    lock, under_way = threading.Lock(), 0

    def answer(handler: Handler) -> None:
        nonlocal under_way
        with lock:
            is_full = under_way >= most
            under_way += not is_full
        if is_full:
            status(429, "too many requests", **headers)(handler)
            return
        try:
            reply(handler)
        finally:
            with lock:
                under_way -= 1

    return answer


def now_and_then(usual: Reply, other: Reply, *, every: int, long: int) -> Reply:
    """``usual``, and of each ``every`` requests the last ``long`` get ``other``: a storm."""
    lock, number = threading.Lock(), 0

    def answer(handler: Handler) -> None:
        nonlocal number
        with lock:
            at, number = number % every, number + 1
        (other if at >= every - long else usual)(handler)

    return answer


def free_port() -> int:
    """A port at which nobody listens."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def status(code: int, message: str = "no", error_code: str | None = None, **headers: str) -> Reply:
    """An error in OpenAI's format."""
    body = json.dumps({"error": {"message": message, "code": error_code, "type": "x"}})
    return lambda handler: handler.send(code, body, **headers)


def raw(text: str) -> Reply:
    """Status 200 with any body."""
    return lambda handler: handler.send(200, text)


def says(body: Any, code: int = 200, **headers: str) -> Reply:
    """Any JSON value, with any status."""
    return lambda handler: handler.send(code, json.dumps(body), **headers)


def by_prompt(replies: Callable[[str], Reply]) -> Reply:
    """The reply that ``replies`` has for what the last message says."""
    return lambda handler: replies(handler.body["messages"][-1]["content"])(handler)


def endless(piece: bytes, pieces: int) -> Reply:
    """A body that goes on and on, in chunks, as long as anybody reads."""

    def reply(handler: Handler) -> None:
        handler.send_response(200)
        handler.send_header("connection", "close")
        handler.end_headers()
        for _ in range(pieces):
            handler.wfile.write(piece)
            handler.server.sent += len(piece)

    return reply


def close(handler: Handler) -> None:
    """Closes the connection without a word."""
    handler.connection.shutdown(socket.SHUT_RDWR)


def hang(seconds: float) -> Reply:
    """Says nothing for a while."""
    return lambda handler: time.sleep(seconds)


def trickle(seconds: float) -> Reply:
    """Sends a byte now and then, so that no single read times out."""

    def reply(handler: Handler) -> None:
        handler.send_response(200)
        handler.send_header("content-length", "100000")
        handler.end_headers()
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            handler.wfile.write(b" ")
            handler.wfile.flush()
            time.sleep(0.05)

    return reply


@contextmanager
def vllm_server(model: str, log: Path, *arguments: str) -> Iterator[str]:
    """vLLM's OpenAI server on ``model`` (served as ``policy``); its base URL. Takes 30 s."""
    port = free_port()
    command = [
        *(sys.executable, "-m", "vllm.entrypoints.openai.api_server"),
        *("--model", model, "--served-model-name", "policy", "--dtype", "float32"),
        *("--host", "127.0.0.1", "--port", str(port), "--enforce-eager"),
        *("--no-enable-chunked-prefill", "--max-num-batched-tokens", "4096"),
        *("--max-num-seqs", "32", *arguments),
    ]
    environment = os.environ | {
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "True",
        "TORCHDYNAMO_DISABLE": "1",
    }
    with log.open("w") as output:
        process = subprocess.Popen(
            command, env=environment, stdout=output, stderr=subprocess.STDOUT
        )
    try:
        _wait_until_healthy(f"http://127.0.0.1:{port}/health", process, log)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _wait_until_healthy(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    for _ in range(2400):
        if process.poll() is not None:
            raise RuntimeError(f"the vLLM server ended:\n{log.read_text()[-3000:]}")
        try:
            with urllib.request.urlopen(url, timeout=1):
                return
        except OSError:
            time.sleep(0.2)
    raise RuntimeError(f"the vLLM server does not come up:\n{log.read_text()[-3000:]}")
