"""Azurite, Microsoft's own emulator of Azure's blobs, where somebody has installed it
(``npm install --global azurite``)."""

from __future__ import annotations

import base64
import hashlib
import hmac
import shutil
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from email.utils import format_datetime
from pathlib import Path

# What every Azurite and every client of it knows, by its documentation.
_ACCOUNT = "devstoreaccount1"
_WORD = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="
_VERSION = "2021-08-06"


def azurite() -> str | None:
    """The program, where it is installed."""
    return shutil.which("azurite-blob")


@contextmanager
def azure_server(folder: Path) -> Iterator[dict[str, str]]:
    """Azurite in a process of its own, with its files in ``folder``; what to have in the
    environment to talk to it."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    program = azurite()
    assert program
    command = [
        program, "--silent", "--disableTelemetry", "--skipApiVersionCheck",
        "--location", str(folder), "--blobHost", "127.0.0.1", "--blobPort", str(port),
    ]  # fmt: skip
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        for _ in range(600):
            with socket.socket() as asked:
                if asked.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.1)
        url = f"http://127.0.0.1:{port}"
        yield {"AZURE_STORAGE_USE_EMULATOR": "true", "AZURITE_BLOB_STORAGE_URL": url}
    finally:
        process.kill()
        process.wait()


def make_container(url: str, name: str) -> str:
    """A new container; its address."""
    date = format_datetime(datetime.now(UTC), usegmt=True)
    headers = {"x-ms-date": date, "x-ms-version": _VERSION}
    lines = "".join(f"{key}:{value}\n" for key, value in sorted(headers.items()))
    said = f"PUT{12 * chr(10)}{lines}/{_ACCOUNT}/{_ACCOUNT}/{name}\nrestype:container"
    digest = hmac.new(base64.b64decode(_WORD), said.encode(), hashlib.sha256).digest()
    headers["Authorization"] = f"SharedKey {_ACCOUNT}:{base64.b64encode(digest).decode()}"
    request = urllib.request.Request(
        f"{url}/{_ACCOUNT}/{name}?restype=container", method="PUT", headers=headers
    )
    urllib.request.urlopen(request, timeout=30).read()
    return f"az://{name}"
