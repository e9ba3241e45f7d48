"""Where the files of a run's dataset are, and which rows go into which."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import pyarrow as pa

from prefloop.data.arrays import Bools
from prefloop.data.hashing import derive_seeds
from prefloop.data.shards import write_shard

SPLITS = ("train", "test")
_GROUP_ROWS = 1_000
"""Rows that are compressed together, at least."""
_GROUP_BYTES = 8 << 20
"""In memory, of rows that are compressed together: small enough to stream, large enough to
compress. Each group costs a file with many columns half a millisecond."""
FILE_ROWS = 20_000
"""Rows of a dataset file; also what is held in memory while one is gathered."""
FILE_BYTES = 256 << 20
"""In memory, of the rows of a file: one of long answers has fewer of them."""
TRIPLES_FOLDER, UNPAIRED_FOLDER = "data", "unpaired"
CANDIDATES_FOLDER, VOTES_FOLDER = "candidates", "votes"
"""Folders of the dataset, one for each of its configs."""


@dataclass(frozen=True)
class DatasetPart:
    """A round's part of a dataset."""

    dataset: Path
    round_index: int
    seed: int
    test_share: float

    def file(self, folder: str, split: str, number: int) -> Path:
        """The name of a file."""
        name = f"{split}-round-{self.round_index:03d}-{number:05d}.parquet"
        return self.dataset / folder / name

    def splits(self, prompt_ids: Sequence[str]) -> dict[str, Bools]:
        """Which of some prompts belong in each split."""
        test = _in_test(tuple(prompt_ids), self.seed, self.test_share)
        return {"train": ~test, "test": test}


class PartFiles:
    """The files of a ``part`` in one folder of the dataset, written as their rows come."""

    def __init__(self, part: DatasetPart, folder: str, schema: pa.Schema) -> None:
        self.folder = folder
        self._part, self._schema = part, schema
        self._gathered: dict[str, list[pa.Table]] = {split: [] for split in SPLITS}
        self._size = dict.fromkeys(SPLITS, (0, 0))
        self._numbers = dict.fromkeys(SPLITS, 0)
        self._written: dict[Path, int] = {}

    def add(self, tables: Mapping[str, pa.Table]) -> None:
        """Write the rows of each split after those that came before. Raises ``StorageError``."""
        for split, rows in tables.items():
            begin = 0
            while begin < len(rows):
                there, size = self._size[split]
                some = rows.slice(begin, FILE_ROWS - there)
                self._gathered[split].append(some)
                begin += len(some)
                there, size = self._size[split] = there + len(some), size + some.nbytes
                if there == FILE_ROWS or size >= FILE_BYTES:
                    self._flush(split)

    def close(self) -> dict[Path, int]:
        """Write what is left, and say what rows each file has. Raises ``StorageError``."""
        for split in SPLITS:
            if self._gathered[split]:
                self._flush(split)
        return self._written

    def _flush(self, split: str) -> None:
        table = pa.concat_tables(self._gathered[split]).select(self._schema.names)
        path = self._part.file(self.folder, split, self._numbers[split])
        write_rows(table, path, self._schema)
        self._written[path] = len(table)
        self._numbers[split] += 1
        self._gathered[split].clear()
        self._size[split] = 0, 0


def write_rows(table: pa.Table, path: Path, schema: pa.Schema) -> None:
    """Write a file of the dataset. Raises ``StorageError``."""
    of_bytes = _GROUP_BYTES * len(table) // max(table.nbytes, 1)
    write_shard(table, path, schema, row_group_size=max(of_bytes, _GROUP_ROWS))


def files_in(dataset: Path, folder: str, split: str, round_index: int | None = None) -> list[Path]:
    """The files of a split in a folder of a dataset, of one round or of all."""
    rounds = "*" if round_index is None else f"{round_index:03d}"
    return sorted((dataset / folder).glob(f"{split}-round-{rounds}-*.parquet"))


def split_of(prompt_id: str, *, seed: int, test_share: float) -> str:
    """``train`` or ``test``: a property of the prompt, so no prompt is ever in both."""
    return "test" if _in_test((prompt_id,), seed, test_share)[0] else "train"


@lru_cache(maxsize=1)  # the prompts of a span are shared out several times, one after the other
def _in_test(prompt_ids: tuple[str, ...], seed: int, test_share: float) -> Bools:
    found: Bools = derive_seeds((seed, "split"), prompt_ids) < test_share * 2**31
    return found
