"""Server responses kept on disk, so that a repeated request costs nothing."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from prefloop.data.protocol import EngineFailed
from prefloop.pipeline.engines.openai.together import Together


class ResponseCache:
    """Response bodies by the hash of what determines them. One SQLite file; never evicts.

    Several processes may share it. Bodies are kept as the server sent them (JSON, not pickle), so
    an improved parser can read old ones.
    """

    def __init__(self, folder: Path) -> None:
        """Open, or make, the cache in ``folder``. Raises ``EngineFailed``."""
        self._storing = Together(self._store)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._path = folder / "responses.sqlite"
            self._db = sqlite3.connect(
                self._path,
                timeout=30,
                isolation_level=None,  # what is no transaction of ours is one of its own
            )
            # A lost tail of the cache after a power cut costs a few repeated requests, no more.
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.execute("PRAGMA synchronous=NORMAL")
            self._db.execute(
                "CREATE TABLE IF NOT EXISTS response (key TEXT PRIMARY KEY, body TEXT NOT NULL)"
            )
        except (OSError, sqlite3.Error) as error:
            raise EngineFailed(
                f"cannot open the response cache in {folder}: {error}",
                "check cache_dir; a damaged responses.sqlite in it can be deleted",
            ) from None

    def get(self, key: str) -> Any:
        """The response body stored under ``key``; None where there is none that can be read."""
        with self._one_line():
            row = self._db.execute("SELECT body FROM response WHERE key = ?", (key,)).fetchone()
        try:
            return None if row is None else json.loads(row[0])
        except (ValueError, TypeError, RecursionError):
            return None

    def has_any(self, keys: Sequence[str]) -> bool:
        """Whether there is a response under one of ``keys``."""
        marks = ", ".join("?" * len(keys))
        with self._one_line():
            found = self._db.execute(
                f"SELECT 1 FROM response WHERE key IN ({marks}) LIMIT 1",  # noqa: S608  # of marks
                tuple(keys),
            )
            return found.fetchone() is not None

    async def put(self, key: str, body: str) -> None:
        """Store ``body``, JSON in ASCII, replacing what was there. It is stored on return."""
        await self._storing.do((key, body), whatever=True)

    def _store(self, answers: Sequence[tuple[str, str]]) -> list[None]:
        with self._one_line():
            self._db.execute("BEGIN IMMEDIATE")
            try:
                self._db.executemany("INSERT OR REPLACE INTO response VALUES (?, ?)", answers)
                self._db.execute("COMMIT")
            except BaseException:
                self._db.rollback()
                raise
        return [None] * len(answers)

    def close(self) -> None:
        """Store what is not yet, and close the file. Idempotent."""
        self._storing.flush()
        self._db.close()

    @contextmanager
    def _one_line(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise EngineFailed(
                f"the response cache {self._path} cannot be used: {error}",
                "where it is locked, end the other process; where the disk is full, make room; "
                "where it is damaged, delete that file (its answers are asked for again)",
            ) from None
