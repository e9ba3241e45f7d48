"""Where the files of a run's dataset are, and which rows go into which."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from prefloop.data.hashing import derive_seed
from prefloop.data.shards import write_shard

SPLITS = ("train", "test")
ROW_GROUP_ROWS = 1_000
"""Small enough to stream, large enough to compress."""
FILE_ROWS = 20_000
"""Rows of a dataset file; also what is held in memory while one is gathered."""
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

    def write(self, folder: str, tables: Iterable[pa.Table], schema: pa.Schema) -> dict[Path, int]:
        """Write ``tables``, one after the other, into files by split; the rows of each file."""
        files: dict[Path, int] = {}
        gathered: dict[str, list[pa.Table]] = {split: [] for split in SPLITS}
        written = dict.fromkeys(SPLITS, 0)

        def flush(split: str) -> None:
            table = pa.concat_tables(gathered[split]).select(schema.names)
            path = self.file(folder, split, written[split] // FILE_ROWS)
            write_shard(table, path, schema, row_group_size=ROW_GROUP_ROWS)
            files[path] = len(table)
            gathered[split] = []
            written[split] += len(table)

        for table in tables:
            splits = self._splits(table["prompt_id"])
            for split in SPLITS:
                rows = table.filter(pa.array(splits == split))
                while len(rows):
                    room = FILE_ROWS - sum(map(len, gathered[split]))
                    gathered[split].append(rows.slice(0, room))
                    rows = rows.slice(room)
                    if sum(map(len, gathered[split])) == FILE_ROWS:
                        flush(split)
        for split in SPLITS:
            if gathered[split]:
                flush(split)
        return files

    def _splits(self, prompt_ids: pa.ChunkedArray) -> np.ndarray:
        names = prompt_ids.to_pylist()
        split_by_id = {
            one: split_of(one, seed=self.seed, test_share=self.test_share) for one in set(names)
        }
        return np.array([split_by_id[one] for one in names], dtype="U5")


def files_in(dataset: Path, folder: str, split: str, round_index: int | None = None) -> list[Path]:
    """The files of a split in a folder of a dataset, of one round or of all."""
    rounds = "*" if round_index is None else f"{round_index:03d}"
    return sorted((dataset / folder).glob(f"{split}-round-{rounds}-*.parquet"))


def split_of(prompt_id: str, *, seed: int, test_share: float) -> str:
    """``train`` or ``test``: a property of the prompt, so no prompt is ever in both."""
    return "test" if derive_seed(seed, "split", prompt_id) < test_share * 2**31 else "train"
