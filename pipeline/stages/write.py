"""The write stage: kept decisions become triples, and triples the dataset of the run."""

from __future__ import annotations

import logging
import shutil
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path

import pyarrow as pa

from prefloop.data.errors import NothingCameOut, StorageError
from prefloop.data.schemas import TRIPLE, UNPAIRED
from prefloop.data.shards import (
    atomic_write_json,
    damaged,
    lacks_columns,
    read_json_object,
    read_shard,
    row_count,
)
from prefloop.pipeline.executors.block_task import BlockFacts
from prefloop.pipeline.executors.local import LocalExecutor
from prefloop.pipeline.executors.units import run_units
from prefloop.pipeline.run.context import RoundContext
from prefloop.pipeline.run.progress import StepProgress
from prefloop.pipeline.run.run_dir import RoundDir, RunDir, Stopwatch
from prefloop.pipeline.stages.dataset.every_answer import EVERY_CANDIDATE, EVERY_VOTE
from prefloop.pipeline.stages.dataset.layout import (
    CANDIDATES_FOLDER,
    SPLITS,
    TRIPLES_FOLDER,
    UNPAIRED_FOLDER,
    VOTES_FOLDER,
    files_in,
    write_rows,
)
from prefloop.pipeline.stages.dataset.volumes import (
    WRITE,
    Volumes,
    WhatIsWritten,
    forget_volumes,
    volumes_job,
)

logger = logging.getLogger(__name__)

_UNPAIRED = ("unpaired_train", "unpaired_test")
_EVERY = ("candidates_train", "candidates_test", "votes_train", "votes_test")
_COUNTED = {
    TRIPLES_FOLDER: SPLITS, UNPAIRED_FOLDER: _UNPAIRED,
    CANDIDATES_FOLDER: _EVERY[:2], VOTES_FOLDER: _EVERY[2:],
}  # fmt: skip
"""What ``written.json`` counts: the rows of each folder of the dataset, by split."""


async def write_round(
    context: RoundContext, *, test_share: float, unpaired: bool, every_answer: bool = True
) -> None:
    """Write the triple shards of a round and add them to the dataset, once.

    ``unpaired``: single answers with labels are added too; ``every_answer``: all answers and votes
    are, each with its texts. What was lost of them since is written again: the files at hand must
    have the rows that were written.
    """
    folder = context.folder
    fault = None
    if folder.written.exists():
        fault = _fault(context, unpaired=unpaired)
        if fault is None:
            if not _is_settled(context, wanted=every_answer):
                await _settle_every_answer(context, test_share, wanted=every_answer)
            folder.index_shards()
            forget_volumes(folder)  # where a kill came before that
            return
        forget_volumes(folder)
        logger.warning("%s: round %d of the dataset is written again", fault, folder.index)
    watch = Stopwatch()
    context.run.card.unlink(missing_ok=True)  # it says what the files hold
    unused = _unused_columns(context)
    _conform_earlier(context, unused)
    folder.written.unlink(missing_ok=True)
    decided = folder.decisions.indices()
    gone = [index for index in folder.triples.indices() if index not in decided]
    folder.triples.remove(gone if fault is None else None)
    columns = {
        name: _without(whole, unused).names
        for name, whole in ((TRIPLES_FOLDER, TRIPLE), (UNPAIRED_FOLDER, UNPAIRED))
    }
    what = WhatIsWritten(test_share, True, unpaired, every_answer, columns)
    blocks = sorted({*decided, *folder.candidates.indices()})
    volumes = Volumes.of(context, what, blocks)
    await _make(volumes)
    files = volumes.put_in_place()
    # Old files stand until the new ones do; what an earlier try wrote beyond them goes last.
    for path in _files_of(context):
        if path not in files:
            path.unlink()
    wanted = (*SPLITS, *(_UNPAIRED if unpaired else ()), *(_EVERY if every_answer else ()))
    folder.index_shards()  # before the pages that count
    atomic_write_json(folder.written, dict.fromkeys(wanted, 0) | _rows_by_split(files))
    forget_volumes(folder)
    context.note(WRITE, watch.lap())


async def _make(volumes: Volumes) -> None:
    """Have the volumes made that are missing. Files of workers that share none with this process
    would come through it, which has all that they are made of: then it makes them."""
    context = volumes.context
    missing = volumes.missing()
    if not missing:
        return
    sizes = {unit: len(volumes.units.blocks(unit)) for unit in volumes.units.spans}
    total, todo = sum(sizes.values()), sum(sizes[unit] for unit in missing)
    title = f"round {context.index} write"
    with StepProgress(title, total, done=total - todo, unit="blocks") as progress:
        executor = context.executor if context.executor.shares_files else LocalExecutor()

        def heard(facts: BlockFacts) -> None:
            progress.advance(sizes[facts.block])

        await run_units(executor, volumes_job(volumes), missing, heard)


def _is_settled(context: RoundContext, *, wanted: bool) -> bool:
    """Whether the round's answers and votes are in the dataset as they were written; without
    ``wanted``, whether none of them is."""
    paths = _files_of(context, (CANDIDATES_FOLDER, VOTES_FOLDER))
    if not wanted:
        return not paths and not has_every_answer(context.folder)
    if not has_every_answer(context.folder):
        return False
    try:
        found = _rows_by_split({path: row_count(path) for path in paths})
    except StorageError:
        return False
    written = _written(context.folder)
    return all(found.get(name, 0) == written[name] for name in _EVERY)


async def _settle_every_answer(context: RoundContext, test_share: float, *, wanted: bool) -> None:
    """Add answers and votes to a round that was written without them, or lost some; without
    ``wanted``, take them out."""
    folder = context.folder
    context.run.card.unlink(missing_ok=True)
    _conform_earlier(context, _unused_columns(context))
    counts = {name: count for name, count in _written(folder).items() if name not in _EVERY}
    atomic_write_json(folder.written, counts)  # so long as they are not whole
    files: dict[Path, int] = {}
    if wanted:
        what = WhatIsWritten(test_share, triples=False)
        volumes = Volumes.of(context, what, folder.candidates.indices())
        await _make(volumes)
        files = volumes.put_in_place()
    for path in _files_of(context, (CANDIDATES_FOLDER, VOTES_FOLDER)):
        if path not in files:
            path.unlink()
    if wanted:
        every = dict.fromkeys(_EVERY, 0) | _rows_by_split(files)
        atomic_write_json(folder.written, counts | every)


def _conform_earlier(context: RoundContext, unused: Collection[str]) -> None:
    """Give the dataset's files of earlier versions the columns that were added since, but for those
    that are ``unused``: the files of a dataset have to have the same ones."""
    for whole, folder in (
        (TRIPLE, TRIPLES_FOLDER), (UNPAIRED, UNPAIRED_FOLDER),
        (EVERY_CANDIDATE, CANDIDATES_FOLDER), (EVERY_VOTE, VOTES_FOLDER),
    ):  # fmt: skip
        schema = _without(whole, unused)
        for path in sorted((context.run.dataset / folder).glob("*.parquet")):
            if lacks_columns(path, schema):
                write_rows(read_shard(path, schema), path, schema)


def _fault(context: RoundContext, *, unpaired: bool) -> str | None:
    """What of a written round is not as it was written, by its files' footers; null: nothing."""
    folder = context.folder
    try:
        written = _written(folder)
        triples = folder.triples.rows()
        paths = _files_of(context, (TRIPLES_FOLDER, UNPAIRED_FOLDER))
        found = _rows_by_split({path: row_count(path) for path in paths})
    except StorageError as error:
        where = str(error).partition(": cannot be read")[0].partition(": is damaged")[0]
        return f"{where} is damaged"
    if triples != sum(written[split] for split in SPLITS):
        return f"{folder.triples.folder} holds {triples:,} triples, not those that were written"
    if folder.triples.indices() != folder.decisions.indices():
        return f"{folder.triples.folder} has other blocks than the decisions"
    if not unpaired:
        wanted = {split: written[split] for split in SPLITS}
    elif _UNPAIRED[0] in written:
        wanted = {split: written[split] for split in (*SPLITS, *_UNPAIRED)}
    elif any(split in found for split in _UNPAIRED):  # of a version that did not count them
        wanted = written | {split: found.get(split, 0) for split in _UNPAIRED}
    else:
        return f"{context.run.dataset / UNPAIRED_FOLDER} has no file of the round"
    for split in (*SPLITS, *_UNPAIRED):
        if found.get(split, 0) != wanted.get(split, 0):
            return (
                f"{context.run.dataset} holds {found.get(split, 0):,} rows ({split}) where "
                f"{wanted.get(split, 0):,} belong"
            )
    return None


def _files_of(context: RoundContext, folders: Iterable[str] = tuple(_COUNTED)) -> list[Path]:
    """The round's files in ``folders`` of the dataset."""
    return [
        path
        for folder in folders
        for split in SPLITS
        for path in files_in(context.run.dataset, folder, split, context.index)
    ]


def _rows_by_split(files: Mapping[Path, int]) -> dict[str, int]:
    """The rows of the round's ``files`` (by path) by what ``written.json`` counts."""
    counts: Counter[str] = Counter()
    for path, rows in files.items():
        names = _COUNTED[path.parent.name]
        counts[names[SPLITS.index(path.name.partition("-")[0])]] += rows
    return dict(counts)


def require_train_rows(context: RoundContext, test_share: float) -> None:
    """Raise ``NothingCameOut`` where all of a round's triples went to the test split, and take it
    back, so that another share writes the round anew."""
    folder = context.folder
    rows = rows_written(folder)
    if rows["train"]:
        return
    folder.written.unlink()
    shutil.rmtree(folder.triples.folder, ignore_errors=True)
    for file in _files_of(context):
        file.unlink()
    raise NothingCameOut(
        f"round {folder.index} kept {rows['test']:,} of its pairs, all in the test split: none is "
        f"left to train on. Lower write.test_share ({test_share:g}; the same command then goes on "
        "from here), or give more prompts in a new --run-dir"
    )


def split_files(
    run: RunDir, split: str, round_index: int | None = None, *, unpaired: bool = False
) -> list[Path]:
    """The dataset's files of a split, of one round or of all: triples, or single answers."""
    folder = UNPAIRED_FOLDER if unpaired else TRIPLES_FOLDER
    return files_in(run.dataset, folder, split, round_index)


def rows_written(folder: RoundDir) -> Mapping[str, int]:
    """Triples a round added to each split; empty before it has been written."""
    counts = _written(folder)
    return {split: counts[split] for split in SPLITS} if counts else {}


def has_every_answer(folder: RoundDir) -> bool:
    """Whether the dataset has all answers and votes of a written round, as it says itself."""
    return _written(folder).keys() >= set(_EVERY)


def _written(folder: RoundDir) -> dict[str, int]:
    """What ``written.json`` says; empty where there is none. Raises ``StorageError``."""
    if not folder.written.exists():
        return {}
    remedy = "delete it and give `prefloop run` again, which writes the round's dataset again"
    counts = read_json_object(folder.written, remedy)
    if not set(SPLITS) <= counts.keys() or not all(type(n) is int for n in counts.values()):
        raise damaged(folder.written, "no counts of rows", remedy)
    return counts


def _unused_columns(context: RoundContext) -> Collection[str]:
    """The columns for tools, where no prompt of the run has any: all files of a dataset have the
    same columns."""
    for prompts in context.run.prompts.iter(["tools", "turns"]):
        if any(prompts[name].null_count < len(prompts) for name in prompts.column_names):
            return ()
    return "tools", "prompt_turns"


def _without(schema: pa.Schema, names: Collection[str]) -> pa.Schema:
    return pa.schema([field for field in schema if field.name not in names])
