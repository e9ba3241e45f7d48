"""The pairs of a dataset folder or of a Parquet file of triples: nothing is known of votes."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from prefloop.data.arrays import Ints
from prefloop.data.errors import InputError
from prefloop.data.utf8 import one_line
from prefloop.pipeline.policies.train_alone import find_sources
from prefloop.pipeline.view.pair_facts import FACTS, KEPT
from prefloop.pipeline.view.pair_texts import Shown, pretty

_SIDES = ("chosen", "rejected")
_FIGURES = ("margin", "agreement", "p_chosen", "round", "labelers")
_BATCH = 1_000


class TriplePairs:
    """The rows of Parquet files with the turns of ``prompt``, ``chosen`` and ``rejected``."""

    def __init__(self, path: Path) -> None:
        """Raises ``InputError`` for what holds no triples."""
        found = find_sources([path])
        self.name = path.resolve().name
        self._files = [
            (file, split if path.is_dir() else None)
            for split, files in (("train", found.train), ("test", found.test))
            for file in files
        ]
        tables = [self._facts(part) for part in range(len(self._files))]
        self.facts = pa.concat_tables([FACTS.empty_table(), *tables]).combine_chunks()
        if not len(self.facts):
            raise InputError(f"{path}: holds no triple to look at")

    def read(self, rows: Sequence[int], *, votes: bool = True) -> list[Shown]:  # noqa: ARG002
        """See ``BrowsedPairs``."""
        places = self.facts.take(pa.array(rows, pa.int64())).select(["part", "row"]).to_pylist()
        wanted: defaultdict[int, set[int]] = defaultdict(set)
        for place in places:
            wanted[place["part"]].add(place["row"])
        read = {
            (part, row): shown for part in wanted for row, shown in self._pairs(part, wanted[part])
        }
        return [read[place["part"], place["row"]] for place in places]

    def search(self, text: str) -> Ints:
        """See ``BrowsedPairs``."""
        found, before = [np.empty(0, np.int64)], 0
        for part in range(len(self._files)):
            for batch in self._batches(part, ("prompt", *_SIDES, *map(_thought, _SIDES))):
                mask = np.zeros(len(batch), bool)
                for name in batch.schema.names:
                    mask |= _rows_with(batch[name], text)
                found.append(before + np.flatnonzero(mask).astype(np.int64))
                before += len(batch)
        return np.concatenate(found)

    def _batches(self, part: int, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
        file, _ = self._files[part]
        try:
            with pq.ParquetFile(file) as opened:
                names = opened.schema_arrow.names
                _check(file, opened.schema_arrow)
                yield from opened.iter_batches(_BATCH, columns=[n for n in columns if n in names])
        except (OSError, pa.ArrowException) as error:
            raise InputError(
                f"{file}: no Parquet file of triples ({one_line(str(error))}): "
                "`prefloop audit FILE --fix DIR` makes one of other files of pairs"
            ) from None

    def _facts(self, part: int) -> pa.Table:
        file, split = self._files[part]
        batches = list(self._batches(part, (*_FIGURES, *_SIDES)))
        tables = [FACTS.empty_table()]
        done = 0
        for batch in batches:
            count = len(batch)
            numbers = np.arange(done, done + count)
            columns: dict[str, Any] = {
                "part": pa.array(np.full(count, part, np.int32)),
                "row": pa.array(numbers),
                "pair_id": pa.array([f"{file.name}:{number + 1}" for number in numbers.tolist()]),
                "fate": pa.array([KEPT] * count),
                "split": pa.array([split] * count, pa.string()),
                **{f"{side}_length": _characters(batch[side]) for side in _SIDES},
            }
            for name in FACTS.names:
                if name not in columns:
                    columns[name] = _figure(batch, name, file)
            tables.append(pa.table({name: columns[name] for name in FACTS.names}, schema=FACTS))
            done += count
        return pa.concat_tables(tables)

    def _pairs(self, part: int, wanted: set[int]) -> Iterator[tuple[int, Shown]]:
        file, _ = self._files[part]
        with pq.ParquetFile(file) as opened:
            names = opened.schema_arrow.names
        done = 0
        for batch in self._batches(part, names):
            here = sorted(row for row in wanted if done <= row < done + len(batch))
            rows = batch.take(pa.array([row - done for row in here], pa.int64())).to_pylist()
            for number, row in zip(here, rows, strict=True):
                yield number, _pair(row, f"{file.name}:{number + 1}")
            done += len(batch)


def _figure(batch: pa.RecordBatch, name: str, file: Path) -> Any:
    kind = FACTS.field(name).type
    if name not in batch.schema.names:
        return pa.nulls(len(batch), kind)
    try:
        return batch[name].cast(kind)
    except pa.ArrowException:
        raise InputError(
            f"{file}: column {name!r} is {batch[name].type} where {kind} is expected: rename it, "
            "or leave it out"
        ) from None


def _check(file: Path, schema: pa.Schema) -> None:
    for name in ("prompt", *_SIDES):
        kind = schema.field(name).type if name in schema.names else pa.null()
        turn = getattr(kind, "value_type", pa.null())
        fields = {field.name: field.type for field in turn} if pa.types.is_struct(turn) else {}
        if not all(_is_text(fields.get(part)) for part in ("role", "content")):
            raise InputError(
                f"{file}: holds no triples of turns (column {name!r}): "
                "`prefloop audit FILE --fix DIR` makes a dataset of it"
            )


def _is_text(kind: pa.DataType | None) -> bool:
    return kind is not None and bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def _thought(side: str) -> str:
    return f"{side}_reasoning"


def _texts(column: Any) -> tuple[Any, Any]:
    """The texts in a column of turns or of texts, and the row of each."""
    if _is_text(column.type):
        return column, pa.array(np.arange(len(column)))
    texts = pc.struct_field(pc.list_flatten(column), "content")
    return texts, pc.list_parent_indices(column)


def _rows_with(column: Any, text: str) -> Any:
    texts, rows = _texts(column)
    found = pc.fill_null(pc.match_substring(texts, text, ignore_case=True), False)
    mask = np.zeros(len(column), bool)
    mask[rows.filter(found).to_numpy()] = True
    return mask


def _characters(column: Any) -> pa.Array:
    texts, rows = _texts(column)
    lengths = pc.fill_null(pc.utf8_length(texts), 0).to_numpy()
    return pa.array(np.bincount(rows.to_numpy(), lengths, len(column)).astype(np.int64))


def _pair(row: dict[str, Any], place: str) -> Shown:
    return {
        "turns": row["prompt"] or [],
        "as_given": pretty(row.get("prompt_turns")),
        "tools": pretty(row.get("tools")) if isinstance(row.get("tools"), str) else None,
        "source": place,
        "prompt_id": row.get("prompt_id"),
        "decided": True,
        "chosen": _answer(row, "chosen", "policy"),
        "rejected": _answer(row, "rejected", "rejected_policy"),
        "votes": [],
    }


def _answer(row: dict[str, Any], side: str, policy: str) -> Shown:
    return {
        "text": "\n\n".join(turn["content"] or "" for turn in row[side] or []),
        "thought": row.get(_thought(side)),
        "id": row.get(f"{side}_id"),
        "policy": row.get(policy),
        "score": row.get(f"score_{side}"),
        "tokens": row.get(f"{side}_tokens"),
    }
