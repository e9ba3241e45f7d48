"""Files that grow line by line, on a store that has no append: each piece is an object."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from prefloop.data.storage.objects import ChangedMeanwhile, Found, Objects
from prefloop.data.storage.whole_files import put_file
from prefloop.pipeline.remote.changes import all_at_once
from prefloop.pipeline.remote.local_tree import LOG

_PIECE = re.compile(r"(?P<log>(?:.*/)?(?:journal|[^/]+\.spent))/(?P<number>\d{6})\.jsonl")


def is_piece(name: str) -> bool:
    """Whether an object is a piece of a log."""
    return _PIECE.fullmatch(name) is not None


def logs_in(root: Path, names: Iterable[str] = ()) -> Iterator[str]:
    """The logs below ``root`` by name, and those that ``names`` of objects are pieces of."""
    here = {str(path.relative_to(root)) for path in root.rglob("*.jsonl")}
    there = {f"{match['log']}.jsonl" for name in names if (match := _PIECE.fullmatch(name))}
    for name in sorted(here | there):
        if LOG.fullmatch(name) and not any(part.startswith(".") for part in name.split("/")):
            yield name


class LogPieces:
    """The logs of a working copy, and what of them is on the store."""

    def __init__(self, objects: Objects, root: Path) -> None:
        self._objects = objects
        self._root = root
        self._there: dict[str, tuple[int, int]] = {}
        """Pieces on the store and their bytes, by log."""

    def seen(self, names: Iterable[Found]) -> None:
        """Take what a listing has for what is on the store."""
        self._there = {}
        for one in names:
            if match := _PIECE.fullmatch(one.name):
                log = f"{match['log']}.jsonl"
                count, size = self._there.get(log, (0, 0))
                self._there[log] = max(count, int(match["number"])), size + one.size

    def fetch(self) -> None:
        """Make the local logs those of the store."""
        for log in logs_in(self._root):
            if log not in self._there:
                (self._root / log).unlink()
        for log, (count, size) in self._there.items():
            path = self._root / log
            if not path.exists() or path.stat().st_size != size:
                names = [_piece(log, number) for number in range(1, count + 1)]
                put_file(path, b"".join(all_at_once(self._objects.get, names)))

    def send(self) -> None:
        """Send the whole lines that are not on the store yet."""
        for log in logs_in(self._root):
            count, size = self._there.get(log, (0, 0))
            with (self._root / log).open("rb") as file:
                file.seek(size)
                new = file.read()
            new = new[: new.rfind(b"\n") + 1]
            if not new:
                continue
            name = _piece(log, count + 1)
            if not self._objects.create(name, new):
                raise ChangedMeanwhile(
                    f"{self._objects.address}/{name} is there already: another process works there"
                    "; end it, then run the same command again"
                )
            self._there[log] = count + 1, size + len(new)


def _piece(log: str, number: int) -> str:
    return f"{log.removesuffix('.jsonl')}/{number:06d}.jsonl"
