"""Which files of a working copy belong on the store, and which of them changed."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from prefloop.training.session.checkpoint_folder import MARKER

EMPTY = ".folder"
"""Stands for an empty folder, of which a store knows nothing."""
LOG = re.compile(r"(?:.*/)?(?:journal|[^/]+\.spent)\.jsonl")
"""Files that are appended to: they go to the store in pieces."""
_SHARD = re.compile(r"part-\d{5,}(-\d{5,})?\.parquet")
"""Files that are never written into."""
_CHECKPOINTS = re.compile(r"\..+\.checkpoints")
_SETTLED_NS = 200_000_000
"""A folder that changed a shorter time ago may change again without a new time of change."""


@dataclass
class _Folder:
    changed: int
    """When, in ns; -1 where that says nothing."""
    files: dict[str, tuple[int, str]] = field(default_factory=dict)
    """Inode and state by name."""
    folders: list[str] = field(default_factory=list)


def state_of(path: Path) -> str:
    """Another one when the file was written again."""
    return _state(path.stat())


def is_slow(folder: str) -> bool:
    """Whether a folder's files are written into, and change at any moment: what trackers keep."""
    return "tracking" in folder.split("/")


class LocalTree:
    """The files below ``root`` that belong on the store.

    Not among them: what is hidden (locks, files that are being written), the responses of servers
    (large, changed in place, and only of use to the block in work), and checkpoints that are not
    whole. Files are replaced and hardly ever written into, so a folder whose time of change is the
    old one is as it was; :meth:`changed` with ``slow`` takes no time for that.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self._seen: dict[str, _Folder] = {}
        self._written: set[str] = set()

    def written(self, path: Path) -> None:
        """The file ``path`` was written. Shards alone have to be told of: many lie in a folder, and
        one that has the inode that it had is not looked at again."""
        self._written.add(str(path.relative_to(self.root)))

    def forget(self) -> None:
        """Take every folder for changed."""
        self._seen.clear()

    def all(self) -> dict[str, str]:
        """The state of every file by its name."""
        self.forget()
        return {
            f"{folder}/{name}" if folder else name: state
            for folder, files in self.changed(slow=True)
            for name, state in files.items()
        }

    def changed(self, *, slow: bool = False) -> Iterator[tuple[str, dict[str, str]]]:
        """Each folder that may have changed since it was asked for last, with its files' states by
        name; one that is gone has none. ``slow``: look at all files but shards, and at those too
        that change at any moment."""
        self._forget_written()
        found: list[tuple[str, dict[str, str]]] = []
        visited = set()
        waiting = [""]
        while waiting:
            folder = waiting.pop()
            if is_slow(folder) and not slow:
                visited |= {one for one in self._seen if _within(one, folder)}
                continue
            seen, is_new = self._look(folder, slow)
            if seen is None:
                continue
            visited.add(folder)
            waiting += [f"{folder}/{name}" if folder else name for name in seen.folders]
            if is_new:
                found.append((folder, {name: state for name, (_, state) in seen.files.items()}))
        for gone in self._seen.keys() - visited:
            del self._seen[gone]
            found.append((gone, {}))
        return iter(found)

    def _look(self, folder: str, slow: bool) -> tuple[_Folder | None, bool]:
        path = self.root / folder
        old = self._seen.get(folder)
        try:
            changed = path.stat().st_mtime_ns
            if old and old.changed == changed and not slow:
                return old, False
            began = time.time_ns()
            with os.scandir(path) as entries:
                new = _read(folder, list(entries), old)
        except (FileNotFoundError, NotADirectoryError):
            return None, False
        new.changed = changed if began - changed > _SETTLED_NS else -1
        self._seen[folder] = new
        return new, True

    def _forget_written(self) -> None:
        """Inodes are given out again: they say nothing of a shard that was written since."""
        for name in self._written:
            folder, _, file = name.rpartition("/")
            if folder in self._seen:
                self._seen[folder].changed = -1
                self._seen[folder].files.pop(file, None)
        self._written.clear()


def _read(folder: str, entries: list[os.DirEntry[str]], old: _Folder | None) -> _Folder:
    found = _Folder(-1)
    if folder.rpartition("/")[2].startswith("checkpoint-") and all(
        entry.name != MARKER for entry in entries
    ):
        return found
    in_cache = "cache" in folder.split("/")
    for entry in entries:
        if entry.name.startswith(".") and not _CHECKPOINTS.fullmatch(entry.name):
            continue
        try:
            if entry.is_dir():
                if not in_cache:
                    found.folders.append(entry.name)
            elif not in_cache and not LOG.fullmatch(entry.name):
                before = old.files.get(entry.name) if old else None
                is_shard = before and before[0] == entry.inode() and _SHARD.fullmatch(entry.name)
                state = before[1] if before and is_shard else _state(entry.stat())
                found.files[entry.name] = (entry.inode(), state)
        except FileNotFoundError:  # removed meanwhile
            continue
    if folder and not in_cache and not entries:
        found.files[EMPTY] = (0, EMPTY)
    return found


def _state(stat: os.stat_result) -> str:
    return f"{stat.st_size}-{stat.st_mtime_ns}-{stat.st_ino}"


def _within(folder: str, other: str) -> bool:
    return folder == other or folder.startswith(f"{other}/")
