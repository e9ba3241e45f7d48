"""Who tried which block of a stage, in files that its workers share: a block that takes its workers
with it is found, and a worker whose stage is over sees that it is.

    attempts/GENERATION/INDEX/N           the N-th try of a block, made by whoever begins it; holds
                                          why it ended, where that is known
    attempts/GENERATION/INDEX/held-K.parquet  what was made of a block of which nothing came

A generation is one stage of one process, and is gone with it.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from uuid import uuid4

import pyarrow as pa
import pyarrow.parquet as pq

from prefloop.data.errors import StorageError
from prefloop.data.shards import write_shard

ATTEMPTS = "attempts"
"""Folder in the run directory."""


class StageOver(Exception):
    """Nobody waits for this work any more."""


class Attempts:
    """The tries of one generation. Making the object touches no disk."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @staticmethod
    def begin(root: Path) -> Attempts:
        """A new generation in the run directory ``root``; those before it are over."""
        shutil.rmtree(root / ATTEMPTS, ignore_errors=True)
        folder = root / ATTEMPTS / uuid4().hex[:12]
        try:
            folder.mkdir(parents=True)
        except OSError as error:
            raise StorageError(
                f"{folder}: cannot be made: {error.strerror}: make room, then run the same command "
                "again"
            ) from None
        return Attempts(folder)

    def end(self) -> None:
        """Let all who work on it see that it is over."""
        shutil.rmtree(self.folder, ignore_errors=True)
        with suppress(OSError):  # another has begun since
            self.folder.parent.rmdir()

    def is_over(self) -> bool:
        """Whether it is."""
        return not self.folder.is_dir()

    def count(self, index: int) -> int:
        """How often block ``index`` was tried."""
        return len(self._tries(index))

    def begin_try(self, index: int) -> int:
        """Try block ``index``: the number of the try, from 1. Raises ``StageOver``."""
        folder = self.folder / str(index)
        number = 1
        while True:
            try:
                folder.mkdir(exist_ok=True)
                os.close(os.open(folder / str(number), os.O_CREAT | os.O_EXCL | os.O_WRONLY))
            except FileExistsError:
                number += 1
            except FileNotFoundError:
                raise StageOver from None
            else:
                return number

    def say(self, index: int, number: int, why: str) -> None:
        """Write down why a try ended that came to nothing."""
        (self.folder / str(index) / str(number)).write_text(why, encoding="utf-8")

    def reason(self, index: int) -> str:
        """Why the last try of block ``index`` of which that is known came to nothing; else
        empty."""
        said = (path.read_text(encoding="utf-8") for path in reversed(self._tries(index)))
        return next(filter(None, said), "")

    def hold(self, index: int, tables: Sequence[pa.Table]) -> None:
        """Keep what was made of block ``index`` until it is known whether it counts."""
        for number, table in enumerate(tables):
            write_shard(table, self._held(index, number), table.schema)

    def held(self, index: int, tables: int) -> tuple[pa.Table, ...]:
        """What was kept of block ``index``."""
        paths = [self._held(index, number) for number in range(tables)]
        return tuple(pq.ParquetFile(path).read() for path in paths)

    def _held(self, index: int, number: int) -> Path:
        return self.folder / str(index) / f"held-{number}.parquet"

    def _tries(self, index: int) -> list[Path]:
        try:
            found = [path for path in (self.folder / str(index)).iterdir() if path.name.isdigit()]
        except FileNotFoundError:
            return []
        return sorted(found, key=lambda path: int(path.name))
