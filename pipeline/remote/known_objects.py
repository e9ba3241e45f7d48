"""What is known of the objects that a working copy was last the same as, kept over restarts."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from prefloop.data.errors import StorageError


class Known(NamedTuple):
    """A file that is on the store."""

    state: str
    """Of the local file then; empty where it is not known."""
    version: str
    """Of the object."""


class KnownObjects:
    """By folder and file name. Every change is on disk when the method returns."""

    def __init__(self, path: Path) -> None:
        """Open, or make, the table in the file ``path``."""
        self.folders: dict[str, dict[str, Known]] = {}
        try:
            self._db = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
            # A tail lost in a power cut is found again by comparing with the store.
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.execute("PRAGMA synchronous=OFF")
            self._db.execute(
                "CREATE TABLE IF NOT EXISTS object"
                " (name TEXT PRIMARY KEY, state TEXT, version TEXT)"
            )
            for name, state, version in self._db.execute("SELECT * FROM object"):
                self._keep(name, Known(state, version))
        except sqlite3.Error as error:
            raise StorageError(
                f"{path}: cannot be read ({error}): delete the folder {path.parent}, then run the "
                "same command again, which fetches it anew"
            ) from None

    def close(self) -> None:
        """Close the file."""
        self._db.close()

    def get(self, name: str) -> Known | None:
        """What is known of a file."""
        folder, _, file = name.rpartition("/")
        return self.folders.get(folder, {}).get(file)

    def names(self) -> Iterator[str]:
        """All files that are known."""
        for folder, files in self.folders.items():
            for file in files:
                yield f"{folder}/{file}" if folder else file

    def set(self, name: str, known: Known) -> None:
        """Keep what is known of a file."""
        self._keep(name, known)
        self._db.execute("INSERT OR REPLACE INTO object VALUES (?, ?, ?)", (name, *known))

    def drop(self, name: str) -> None:
        """Forget a file."""
        folder, _, file = name.rpartition("/")
        self.folders.get(folder, {}).pop(file, None)
        self._db.execute("DELETE FROM object WHERE name = ?", (name,))

    def _keep(self, name: str, known: Known) -> None:
        folder, _, file = name.rpartition("/")
        self.folders.setdefault(folder, {})[file] = known
