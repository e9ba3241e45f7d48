"""Starting the embedded Argilla, and stopping all of it."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from filelock import FileLock, Timeout

from prefloop.pipeline.review.errors import ReviewError
from prefloop.pipeline.review.server.home import Home
from prefloop.pipeline.review.server.venv import HERE, ensure_venv

PORT = 6900
LOOPBACK = "127.0.0.1"
_SECONDS_TO_START = 120
_SECONDS_TO_STOP = 15
_LOG_TAIL = 800


@dataclass
class Running:
    """A server that is up."""

    url: str
    process: subprocess.Popen[bytes]

    def wait(self) -> None:
        """Until it ends. Raises :class:`ReviewError` if it ended by itself."""
        code = self.process.wait()
        if code:
            raise ReviewError(f"the server ended with code {code}: see its log")


@contextmanager
def running_server(
    home: Home, *, host: str = LOOPBACK, port: int | None = None
) -> Iterator[Running]:
    """The server of ``home`` within the block, healthy from the start and gone at the end.

    ``port`` null is 6900, or a free one where that is taken. Raises :class:`ReviewError` where the
    server runs already, the port asked for is taken, or it does not become healthy.
    """
    home.prepare()
    lock = FileLock(home.lock, blocking=False)
    try:
        lock.acquire()
    except Timeout:
        raise ReviewError(
            f"the server of {home.root} runs already, at {home.url() or 'a place not known yet'}"
        ) from None
    try:
        python = ensure_venv(home)
        address = f"http://{host}:{_port(host, port)}"
        process = _launch(home, str(python), host, int(address.rsplit(":", 1)[1]))
        try:
            _wait_until_healthy(home, process, address)
            home.running.write_text(json.dumps({"url": address}), encoding="utf-8")
            yield Running(address, process)
        finally:
            home.running.unlink(missing_ok=True)
            _stop(process)
    finally:
        lock.release()


def _launch(home: Home, python: str, host: str, port: int) -> subprocess.Popen[bytes]:
    log = home.log.open("ab")
    os.chmod(home.log, 0o600)  # noqa: PTH101
    # Nothing of this process's Python, and no key that happens to be set, reaches the server.
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "LANG", "TMPDIR", "TZ")
            if name in os.environ}  # fmt: skip
    return subprocess.Popen(
        [
            python,
            "-m",
            "argilla_lite",
            "--home",
            str(home.data),
            "--host",
            host,
            "--port",
            str(port),
        ],
        env={**kept, "PYTHONPATH": str(HERE), "PYTHONUNBUFFERED": "1"},
        cwd=home.data,
        stdin=subprocess.PIPE,  # its end tells the server that this process is gone
        stdout=log,
        stderr=log,
        start_new_session=True,
    )


def _port(host: str, wanted: int | None) -> int:
    for port in (wanted or PORT, 0):
        with socket.socket() as one:
            one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                one.bind((host, port))
            except OSError as error:
                if wanted:
                    raise ReviewError(
                        f"port {wanted} of {host} cannot be used ({error.strerror}): give another "
                        "--port, or none"
                    ) from None
                continue
            return int(one.getsockname()[1])
    raise ReviewError(f"no port of {host} can be used")


def _wait_until_healthy(home: Home, process: subprocess.Popen[bytes], address: str) -> None:
    until = time.monotonic() + _SECONDS_TO_START
    while time.monotonic() < until:
        if process.poll() is not None:
            break
        try:
            with urllib.request.urlopen(f"{address}/api/v1/status", timeout=5):  # noqa: S310
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.2)
    said = home.log.read_text(encoding="utf-8", errors="replace")[-_LOG_TAIL:]
    last = next((line for line in reversed(said.splitlines()) if line.strip()), "")
    raise ReviewError(f"the server did not start: {last} (log: {home.log})")


def _stop(process: subprocess.Popen[bytes]) -> None:
    if process.stdin:
        process.stdin.close()
    process.terminate()
    try:
        process.wait(_SECONDS_TO_STOP)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
