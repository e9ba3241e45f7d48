"""Server responses kept on disk, so that a repeated request costs nothing."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from prefloop.data.protocol import EngineFailed


class ResponseCache:
    """Response bodies by the hash of what determines them. One SQLite file; never evicts.

    Several processes may share it. Bodies are kept as the server sent them (JSON, not pickle), so
    an improved parser can read old ones.
    """

    def __init__(self, folder: Path) -> None:
        """Open, or make, the cache in ``folder``. Raises ``EngineFailed``."""
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._db = sqlite3.connect(
                folder / "responses.sqlite",
                timeout=30,
                isolation_level=None,  # every statement is its own transaction
            )
            # A lost tail of the cache after a power cut costs a few repeated requests, no more.
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.execute("PRAGMA synchronous=NORMAL")
            self._db.execute(
                "CREATE TABLE IF NOT EXISTS response (key TEXT PRIMARY KEY, body TEXT NOT NULL)"
            )
        except (OSError, sqlite3.Error) as error:
            raise EngineFailed(
                f"cannot open the response cache in {folder}: {error}", "check cache_dir"
            ) from error

    def get(self, key: str) -> dict[str, Any] | None:
        """The response body stored under ``key``."""
        row = self._db.execute("SELECT body FROM response WHERE key = ?", (key,)).fetchone()
        return None if row is None else json.loads(row[0])

    def put(self, key: str, body: Mapping[str, Any]) -> None:
        """Store ``body``, replacing what was there."""
        text = json.dumps(body, ensure_ascii=False)
        self._db.execute("INSERT OR REPLACE INTO response VALUES (?, ?)", (key, text))

    def close(self) -> None:
        """Close the file. Idempotent."""
        self._db.close()
