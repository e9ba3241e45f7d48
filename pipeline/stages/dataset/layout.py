"""Where the files of a run's dataset are, and which rows go into which."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from prefloop.data.hashing import derive_seed
from prefloop.data.shards import write_shard

SPLITS = ("train", "test")
ROW_GROUP_ROWS = 1_000
"""Small enough to stream, large enough to compress."""
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

    def split(self, table: pa.Table) -> dict[str, pa.Table]:
        """The rows of ``table``, which has ``prompt_id``, by the split that they belong in."""
        belongs = self._splits(table["prompt_id"])
        return {split: table.filter(pc.equal(belongs, split)) for split in SPLITS}

    def _splits(self, prompt_ids: pa.ChunkedArray) -> pa.Array:
        ids = prompt_ids.combine_chunks().dictionary_encode()
        of_each = [
            split_of(one, seed=self.seed, test_share=self.test_share)
            for one in ids.dictionary.to_pylist()
        ]
        return pa.array(of_each, pa.string()).take(ids.indices)


class PartFiles:
    """The files of a ``part`` in one folder of the dataset, written as their rows come."""

    def __init__(self, part: DatasetPart, folder: str, schema: pa.Schema) -> None:
        self.folder = folder
        self._part, self._schema = part, schema
        self._gathered: dict[str, list[pa.Table]] = {split: [] for split in SPLITS}
        self._numbers = dict.fromkeys(SPLITS, 0)
        self._written: dict[Path, int] = {}

    def add(self, table: pa.Table) -> None:
        """Write the rows of ``table`` after those that came before. Raises ``StorageError``."""
        for split, rows in self._part.split(table).items():
            gathered, begin = self._gathered[split], 0
            while begin < len(rows):
                some = rows.slice(begin, FILE_ROWS - sum(map(len, gathered)))
                gathered.append(some)
                begin += len(some)
                rows_now, bytes_now = sum(map(len, gathered)), sum(t.nbytes for t in gathered)
                if rows_now == FILE_ROWS or bytes_now >= FILE_BYTES:
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
        write_shard(table, path, self._schema, row_group_size=ROW_GROUP_ROWS)
        self._written[path] = len(table)
        self._numbers[split] += 1
        self._gathered[split].clear()


def files_in(dataset: Path, folder: str, split: str, round_index: int | None = None) -> list[Path]:
    """The files of a split in a folder of a dataset, of one round or of all."""
    rounds = "*" if round_index is None else f"{round_index:03d}"
    return sorted((dataset / folder).glob(f"{split}-round-{rounds}-*.parquet"))


@lru_cache(maxsize=8_192)  # each prompt is in several tables, one soon after the other
def split_of(prompt_id: str, *, seed: int, test_share: float) -> str:
    """``train`` or ``test``: a property of the prompt, so no prompt is ever in both."""
    return "test" if derive_seed(seed, "split", prompt_id) < test_share * 2**31 else "train"
