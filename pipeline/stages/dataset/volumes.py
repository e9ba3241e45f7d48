"""The files of a round's part of the dataset, made volume by volume, here or by workers.

A volume is some spans of blocks, and has files of its own: so who makes the others, and when, is of
no matter to what is in them. They are made in a hidden folder of the round, where a volume that is
done has a shard that names its files; a resumed run makes the others. At the end all are given
their names in the dataset, whose old files stand until then.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import shutil
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

import prefloop
from prefloop.data.arrays import as_arrow, as_texts
from prefloop.data.errors import StorageError
from prefloop.data.hashing import json_hash
from prefloop.data.packed_folder import PackedFolder
from prefloop.data.schemas import TRIPLE, UNPAIRED
from prefloop.data.shards import ShardFolder, shards_in
from prefloop.data.storage.commits import committed
from prefloop.data.storage.whole_files import link_file
from prefloop.pipeline.executors.attempts import StageOver
from prefloop.pipeline.executors.block_task import BlockFacts, BlockJob, BlockTask, Make, Tables
from prefloop.pipeline.run.context import RoundContext
from prefloop.pipeline.run.run_dir import RoundDir
from prefloop.pipeline.run.spans import SpanUnits, spans_of
from prefloop.pipeline.stages.dataset.every_answer import EveryAnswerFiles
from prefloop.pipeline.stages.dataset.layout import (
    TRIPLES_FOLDER,
    UNPAIRED_FOLDER,
    DatasetPart,
    PartFiles,
)
from prefloop.pipeline.stages.dataset.row_tables import triples_of, unpaired_of
from prefloop.pipeline.stages.dataset.span_tables import SpanTables, only

WRITE = "write"
"""Name of the stage."""
SPANS = 16
"""Spans of a volume: some 30,000 prompts."""
_HIDDEN = ".dataset"
_REMEDY = (
    "let workers have more memory (fewer of them on a node: raise executor.cpus), or set "
    "write.every_answer: false, by which fewer texts are written"
)
_FILE = pa.schema(
    [
        pa.field("folder", pa.string(), nullable=False),
        pa.field("split", pa.string(), nullable=False),
        pa.field("path", pa.string(), nullable=False),  # below the folder of all volumes
        pa.field("rows", pa.int64(), nullable=False),
    ]
)


@dataclass(frozen=True)
class WhatIsWritten:
    """Which rows go into the dataset, and how they are shared out."""

    test_share: float
    triples: bool = True
    """Also their shards."""
    unpaired: bool = False
    every_answer: bool = True
    columns: Mapping[str, Sequence[str]] | None = None
    """Of each folder with triples or single answers; null: all."""

    def details(self) -> dict[str, Any]:
        """It, as JSON has it."""
        columns = self.columns and {name: [*one] for name, one in self.columns.items()}
        return {
            "test_share": self.test_share, "triples": self.triples, "unpaired": self.unpaired,
            "every_answer": self.every_answer, "columns": columns,
        }  # fmt: skip


@dataclass(frozen=True)
class Volumes:
    """The volumes of a round's part of the dataset. Making the object touches no disk."""

    context: RoundContext
    what: WhatIsWritten
    units: SpanUnits
    """Blocks that are ``there`` have triples of before."""
    key: str
    """A hash of all that the files are made of."""

    @staticmethod
    def of(context: RoundContext, what: WhatIsWritten, blocks: Sequence[int]) -> Volumes:
        """Those with ``blocks`` of the round."""
        folder = context.folder
        spans = spans_of(folder, blocks)
        there = folder.triples.indices() if what.triples else ()
        units = SpanUnits.of(spans, there, of_unit=SPANS)
        # What is in a file says its listing: no shard is ever written into.
        nouns = (folder.prompts, folder.candidates, folder.votes, folder.decisions)
        about = [
            prefloop.__version__, what.details(), spans, context.seed, context.system_prompt,
            context.keeps_thoughts, str(TRIPLE), str(UNPAIRED),
            [[list(file) for file in one.files.list() if shards_in(file.name)] for one in nouns],
        ]  # fmt: skip
        return Volumes(context, what, units, json_hash(about)[:16])

    @cached_property
    def folder(self) -> Path:
        """Where they are until all are there."""
        return _hidden(self.context.folder) / self.key

    @cached_property
    def done(self) -> ShardFolder:
        """The files of each volume that is done, by its number."""
        return ShardFolder(self.folder, _FILE)

    def missing(self) -> list[int]:
        """Those that are yet to be made. What others made of something else is removed."""
        for path in _hidden(self.context.folder).glob("*"):
            if path != self.folder:
                shutil.rmtree(path)
        wanted = {*self.context.folder.decisions.indices()} if self.what.triples else set()
        for unit in self.done.indices():
            files = self.done.read(unit)["path"].to_pylist()
            has_triples = wanted.intersection(self.units.blocks(unit)) <= self.units.there
            if not has_triples or not all((self.folder / file).exists() for file in files):
                self.done.remove([unit])
        return self.done.missing(self.units.spans)

    def put_in_place(self) -> dict[Path, int]:
        """Give the files of all volumes their names in the dataset, in the place of what is there:
        the rows of each by its path."""
        numbers: dict[tuple[str, str], int] = defaultdict(int)
        part = _part(self.context, self.what, self.context.run.dataset)
        rows: dict[Path, int] = {}
        for unit in self.units.spans:
            for one in self.done.read(unit).to_pylist():
                key = one["folder"], one["split"]
                target = part.file(*key, numbers[key])
                numbers[key] += 1
                _link(self.folder / one["path"], target)
                rows[target] = one["rows"]
        return rows


def forget_volumes(folder: RoundDir) -> None:
    """Remove the volumes of a round that are not in the dataset."""
    shutil.rmtree(_hidden(folder), ignore_errors=True)


def volumes_job(volumes: Volumes, is_over: Callable[[], bool] = lambda: False) -> BlockJob:
    """The files of each volume, and the triples of its blocks. Where ``is_over`` nobody waits for
    them any more: then no shard is written that others see."""
    context = volumes.context
    details = {"what": volumes.what.details(), "key": volumes.key} | volumes.units.details()

    async def here() -> Make:
        return _Binder(volumes, is_over).make

    task = BlockTask(WRITE, context.run.root, context.index, details, _REMEDY)
    return BlockJob(task, FinishedVolumes(volumes.done), here, in_flight=1)


def write_job(
    context: RoundContext, details: Mapping[str, Any], is_over: Callable[[], bool]
) -> BlockJob:
    """The job whose task has ``details``."""
    what = WhatIsWritten(**details["what"])
    return volumes_job(Volumes(context, what, SpanUnits.read(details), details["key"]), is_over)


@dataclass(frozen=True)
class FinishedVolumes:
    """The files of volumes; see ``prefloop.pipeline.executors.block_task.Shelf``."""

    done: ShardFolder

    def facts(self, index: int, tables: Tables) -> BlockFacts:
        """Nothing is to be said of a volume but that it is there."""
        del tables
        return BlockFacts(index, {})

    async def keep(self, index: int, tables: Tables) -> bool:
        """Write which files it has."""
        return await asyncio.to_thread(self.done.write, index, *tables)

    def kept(self, index: int) -> Tables | None:
        """It, as it was written."""
        return (self.done.read(index),) if self.done.exists(index) else None


class _Binder:
    """Makes volumes, a span at a time."""

    def __init__(self, volumes: Volumes, is_over: Callable[[], bool]) -> None:
        self._volumes, self._is_over = volumes, is_over

    async def make(self, unit: int) -> Tables:
        """The files of volume ``unit``."""
        # A name of its own: two may make it.
        name = f"{unit:05d}-{secrets.token_hex(4)}"
        files = _Files(self._volumes, name)
        for span in self._volumes.units.spans[unit]:
            await asyncio.to_thread(self._add, files, span)
        return (await asyncio.to_thread(files.close),)

    def _add(self, files: _Files, span: Sequence[int]) -> None:
        context, what = self._volumes.context, self._volumes.what
        tables = SpanTables(context.folder, span, context.system_prompt)
        triples = triples_of(context, tables) if what.triples else None
        if self._is_over():
            raise StageOver
        if triples is not None:
            _keep_triples(context.folder, tables, triples, self._volumes.units.there)
            files.add(files.triples, tables, triples)
        if what.unpaired:
            files.add(files.singles, tables, unpaired_of(context, tables))
        if what.every_answer:
            files.answers.add(tables)


class _Files:
    """The files of a volume, in a folder ``name``."""

    def __init__(self, volumes: Volumes, name: str) -> None:
        self._root, what = volumes.folder, volumes.what
        self._part = _part(volumes.context, what, volumes.folder / name)
        columns = what.columns or {}
        self.triples = self._files(TRIPLES_FOLDER, TRIPLE, columns)
        self.singles = self._files(UNPAIRED_FOLDER, UNPAIRED, columns)
        self.answers = EveryAnswerFiles(self._part)

    def add(self, files: PartFiles, tables: SpanTables, rows: pa.Table) -> None:
        """Write ``rows``, made of ``tables``, to ``files``, by the splits of their prompts."""
        prompts = tables.rows_shown(rows["prompt_id"])
        splits = self._part.splits(tables.prompt_ids)
        files.add({split: only(rows, within[prompts]) for split, within in splits.items()})

    def close(self) -> pa.Table:
        """Write what is left: schema _FILE."""
        found = self.triples.close() | self.singles.close() | self.answers.close()
        columns = [
            as_texts([path.parent.name for path in found]),
            as_texts([path.name.partition("-")[0] for path in found]),
            as_texts([str(path.relative_to(self._root)) for path in found]),
            as_arrow(np.array([*found.values()], np.int64)),
        ]
        return pa.table(columns, _FILE)

    def _files(
        self, folder: str, schema: pa.Schema, columns: Mapping[str, Sequence[str]]
    ) -> PartFiles:
        names = columns.get(folder, schema.names)
        return PartFiles(self._part, folder, pa.schema([schema.field(name) for name in names]))


def _keep_triples(
    folder: RoundDir, tables: SpanTables, triples: pa.Table, there: Iterable[int]
) -> None:
    """Let the triples of some blocks be in their shards."""
    shards = folder.triples
    kept = dict(zip(tables.blocks, tables.kept, strict=True))
    decided = [index for index in tables.blocks if folder.decisions.exists(index)]
    before = [index for index in decided if index in there]
    if before and len(before) == len(decided) and _have_rows(shards, decided, kept):
        return
    if before:
        shards.remove(decided)
    shards.write_together(decided, triples, [kept[index] for index in decided])


def _have_rows(shards: PackedFolder, blocks: Iterable[int], rows: Mapping[int, int]) -> bool:
    try:
        return all(shards.rows([index]) == rows[index] for index in blocks)
    except StorageError:
        return False


def _part(context: RoundContext, what: WhatIsWritten, dataset: Path) -> DatasetPart:
    return DatasetPart(dataset, context.index, context.seed, what.test_share)


def _hidden(folder: RoundDir) -> Path:
    return folder.root / _HIDDEN


def _link(source: Path, target: Path) -> None:
    """Let ``target`` be the file ``source``, also in the place of another."""
    if target.exists() and target.samefile(source):
        return
    temporary = target.with_name(f".{target.name}.tmp-{os.getpid()}")
    temporary.unlink(missing_ok=True)
    link_file(source, temporary)
    temporary.replace(target)
    committed(target)
