"""Where the embedded Argilla lives: database, credentials, log, and the environment it runs in."""

from __future__ import annotations

import json
import os
import secrets
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prefloop.pipeline.review.errors import ReviewError

HOME_VARIABLE = "PREFLOOP_ARGILLA_HOME"
OWNER = "owner"
"""User name of whoever runs the server."""
_PASSWORD_BYTES = 18


@dataclass(frozen=True)
class Credentials:
    """Of the owner of a server; not shown by ``repr``."""

    username: str
    password: str
    api_key: str

    def __repr__(self) -> str:
        return f"Credentials(username={self.username!r})"


class Home:
    """The folder of an embedded server. Making the object touches nothing on disk."""

    def __init__(self, root: Path, venv: Path | None = None) -> None:
        self.root = root
        self.venv = venv or root / "venv"
        self.data = root / "data"
        self.credentials = self.data / "credentials.json"
        self.running = self.data / "server.json"
        """Where the server can be reached, while it runs."""
        self.log = self.data / "server.log"
        self.lock = self.data / ".lock"

    def prepare(self) -> None:
        """Make the folders and, at the first start, the owner's password and keys."""
        self.root.mkdir(parents=True, exist_ok=True)
        self.data.mkdir(mode=0o700, exist_ok=True)
        if not self.credentials.exists():
            write_secret(
                self.credentials,
                {
                    "username": OWNER,
                    "password": secrets.token_urlsafe(_PASSWORD_BYTES),
                    "api_key": secrets.token_urlsafe(_PASSWORD_BYTES),
                    "secret": secrets.token_hex(32),
                },
            )

    def url(self) -> str | None:
        """Where the server can be reached; null where none was started or the last one ended."""
        try:
            return str(json.loads(self.running.read_text(encoding="utf-8"))["url"])
        except (OSError, ValueError, KeyError):
            return None

    def owner(self) -> Credentials:
        """The owner's credentials. Raises :class:`ReviewError` where there are none to be had."""
        found = read_secret(self.credentials)
        return Credentials(*(found[key] for key in ("username", "password", "api_key")))


def find_home(path: Path | None = None) -> Home:
    """The home at ``path``, else where PREFLOOP_ARGILLA_HOME says, else the user's own."""
    named = path or os.environ.get(HOME_VARIABLE)
    if named:
        return Home(Path(named).expanduser().resolve())
    share = os.environ.get("XDG_DATA_HOME") or "~/.local/share"
    return Home(Path(share).expanduser().resolve() / "prefloop" / "argilla")


def write_secret(path: Path, values: dict[str, str]) -> None:
    """Write ``values`` to a new file that only its owner may read."""
    partial = path.with_name(f".{path.name}.partial")
    partial.unlink(missing_ok=True)
    with os.fdopen(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as handle:
        json.dump(values, handle, indent=2)
    partial.replace(path)


def read_secret(path: Path) -> dict[str, Any]:
    """The values in ``path``. Raises :class:`ReviewError` where others may read it as well."""
    try:
        mode = stat.S_IMODE(path.stat().st_mode)
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ReviewError(
            f"{path}: no such file: start a server with `prefloop review up`, or use --server URL "
            "with ARGILLA_API_KEY in the environment"
        ) from None
    except (OSError, ValueError) as error:
        raise ReviewError(f"{path}: cannot be read: {error}") from None
    if mode & 0o077:
        raise ReviewError(f"{path}: others may read it (mode {mode:o}): run chmod 600 {path}")
    if not isinstance(found, dict):
        raise ReviewError(f"{path}: holds no credentials")
    return found
