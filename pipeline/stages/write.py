"""The write stage: kept decisions become triples, and triples the dataset of the run."""

from __future__ import annotations

import logging
import shutil
from collections import Counter
from collections.abc import Mapping
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from prefloop.data.conversation import as_sampled, plain, turns_text
from prefloop.data.errors import NothingCameOut, StorageError
from prefloop.data.hashing import derive_seed
from prefloop.data.schemas import MESSAGES, TRIPLE, UNPAIRED
from prefloop.data.shards import (
    atomic_write_json,
    damaged,
    lacks_columns,
    read_json_object,
    read_shard,
    row_count,
    write_shard,
)
from prefloop.data.utf8 import BLANK
from prefloop.labelers.decisions.candidate_scores import candidate_scores
from prefloop.pipeline.run.context import RoundContext
from prefloop.pipeline.run.run_dir import RoundDir, RunDir, Stopwatch
from prefloop.pipeline.stages.rendering import TEXT_COLUMNS, answer_texts

logger = logging.getLogger(__name__)

SPLITS = ("train", "test")
UNPAIRED_SPLITS = ("unpaired_train", "unpaired_test")
"""What ``written.json`` counts: triples and single answers, by the splits of the dataset."""
ROW_GROUP_ROWS = 1_000
"""Small enough to stream, large enough to compress."""
FILE_ROWS = 20_000
"""Rows of a dataset file; also what is held in memory while one is gathered."""
TRIPLES_FOLDER, UNPAIRED_FOLDER = "data", "unpaired"
"""Folders of the dataset."""
_DECISION_COLUMNS = [
    "prompt_id", "round", "chosen_id", "rejected_id", "p_chosen", "score_chosen", "score_rejected",
    "margin", "agreement", "chosen_tokens", "rejected_tokens", "labelers", "kept",
]  # fmt: skip
_PROMPT_COLUMNS = ["prompt_id", "messages", "turns", "tools"]
_CANDIDATE_COLUMNS = [
    "candidate_id", *TEXT_COLUMNS, "reasoning_tokens", "policy", "policy_revision",
]  # fmt: skip


def write_round(context: RoundContext, *, test_share: float, unpaired: bool) -> None:
    """Write the triple shards of a round and add them to the dataset, once.

    ``unpaired``: single answers with labels are added too. What was lost of them since is written
    again: the files at hand must have the rows that were written.
    """
    folder = context.folder
    fault = None
    if folder.written.exists():
        fault = _fault(context, unpaired=unpaired)
        if fault is None:
            folder.index_shards()
            return
        logger.warning("%s: round %d of the dataset is written again", fault, folder.index)
    watch = Stopwatch()
    context.run.card.unlink(missing_ok=True)  # it says what the files hold
    _conform_earlier(context)
    folder.written.unlink(missing_ok=True)
    blocks = folder.decisions.indices()
    for index in blocks:
        if fault is not None or not _has_its_triples(folder, index):
            folder.triples.replace(index, triples_of_block(context, index))
    folder.triples.remove([index for index in folder.triples.indices() if index not in blocks])
    files = _extend_dataset(context, test_share)
    if unpaired:
        files |= _add_unpaired(context, test_share)
    # Old files stand until the new ones do; what an earlier try wrote beyond them goes last.
    for path in _files_of(context):
        if path not in files:
            path.unlink()
    wanted = (*SPLITS, *UNPAIRED_SPLITS) if unpaired else SPLITS
    folder.index_shards()  # before the pages that count
    atomic_write_json(folder.written, dict.fromkeys(wanted, 0) | _rows_by_split(files))
    context.note("write", watch.lap())


def _conform_earlier(context: RoundContext) -> None:
    """Give the dataset's files of earlier versions the columns that were added since: the files of
    a dataset have to have the same ones."""
    for whole, folder in ((TRIPLE, TRIPLES_FOLDER), (UNPAIRED, UNPAIRED_FOLDER)):
        schema = _schema_of(context, whole)
        for path in sorted((context.run.dataset / folder).glob("*.parquet")):
            if lacks_columns(path, schema):
                write_shard(read_shard(path, schema), path, schema, row_group_size=ROW_GROUP_ROWS)


def _has_its_triples(folder: RoundDir, index: int) -> bool:
    kept = int(pc.sum(folder.decisions.read(index, ["kept"])["kept"]).as_py() or 0)
    try:
        return folder.triples.exists(index) and folder.triples.rows([index]) == kept
    except StorageError:
        return False


def _fault(context: RoundContext, *, unpaired: bool) -> str | None:
    """What of a written round is not as it was written, by its files' footers; null: nothing."""
    folder = context.folder
    try:
        written = _written(folder)
        triples = folder.triples.rows()
        found = _rows_by_split({path: row_count(path) for path in _files_of(context)})
    except StorageError as error:
        where = str(error).partition(": cannot be read")[0].partition(": is damaged")[0]
        return f"{where} is damaged"
    if triples != sum(written[split] for split in SPLITS):
        return f"{folder.triples.folder} holds {triples:,} triples, not those that were written"
    if folder.triples.indices() != folder.decisions.indices():
        return f"{folder.triples.folder} has other blocks than the decisions"
    if not unpaired:
        wanted = {split: written[split] for split in SPLITS}
    elif UNPAIRED_SPLITS[0] in written:
        wanted = written
    elif any(split in found for split in UNPAIRED_SPLITS):  # of a version that did not count them
        wanted = written | {split: found.get(split, 0) for split in UNPAIRED_SPLITS}
    else:
        return f"{context.run.dataset / UNPAIRED_FOLDER} has no file of the round"
    for split in (*SPLITS, *UNPAIRED_SPLITS):
        if found.get(split, 0) != wanted.get(split, 0):
            return (
                f"{context.run.dataset} holds {found.get(split, 0):,} rows ({split}) where "
                f"{wanted.get(split, 0):,} belong"
            )
    return None


def _files_of(context: RoundContext) -> list[Path]:
    """The round's files of the dataset, of both kinds."""
    return [
        path
        for unpaired in (False, True)
        for split in SPLITS
        for path in split_files(context.run, split, context.index, unpaired=unpaired)
    ]


def _rows_by_split(files: Mapping[Path, int]) -> dict[str, int]:
    """The rows of the round's ``files`` (by path) by what ``written.json`` counts."""
    counts: Counter[str] = Counter()
    for path, rows in files.items():
        kinds = UNPAIRED_SPLITS if path.parent.name == UNPAIRED_FOLDER else SPLITS
        counts[kinds[SPLITS.index(path.name.partition("-")[0])]] += rows
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
    for split, unpaired in product(("train", "test"), (False, True)):
        for file in split_files(context.run, split, folder.index, unpaired=unpaired):
            file.unlink()
    raise NothingCameOut(
        f"round {folder.index} kept {rows['test']:,} of its pairs, all in the test split: none is "
        f"left to train on. Lower write.test_share ({test_share:g}; the same command then goes on "
        "from here), or give more prompts in a new --run-dir"
    )


def split_of(prompt_id: str, *, seed: int, test_share: float) -> str:
    """``train`` or ``test``: a property of the prompt, so no prompt is ever in both."""
    return "test" if derive_seed(seed, "split", prompt_id) < test_share * 2**31 else "train"


def split_files(
    run: RunDir, split: str, round_index: int | None = None, *, unpaired: bool = False
) -> list[Path]:
    """The dataset's files of a split, of one round or of all: triples, or single answers."""
    rounds = "*" if round_index is None else f"{round_index:03d}"
    folder = run.dataset / (UNPAIRED_FOLDER if unpaired else TRIPLES_FOLDER)
    return sorted(folder.glob(f"{split}-round-{rounds}-*.parquet"))


def rows_written(folder: RoundDir) -> Mapping[str, int]:
    """Triples a round added to each split; empty before it has been written."""
    counts = _written(folder)
    return {split: counts[split] for split in SPLITS} if counts else {}


def _written(folder: RoundDir) -> dict[str, int]:
    """What ``written.json`` says; empty where there is none. Raises ``StorageError``."""
    if not folder.written.exists():
        return {}
    remedy = "delete it and give `prefloop run` again, which writes the round's dataset again"
    counts = read_json_object(folder.written, remedy)
    if not set(SPLITS) <= counts.keys() or not all(type(n) is int for n in counts.values()):
        raise damaged(folder.written, "no counts of rows", remedy)
    return counts


def triples_of_block(context: RoundContext, index: int) -> pa.Table:
    """The kept decisions of block ``index`` with their texts: schema TRIPLE."""
    folder = context.folder
    decisions = folder.decisions.read(index, _DECISION_COLUMNS)
    kept = decisions.filter(decisions["kept"])
    candidates = folder.candidates.read(index, _CANDIDATE_COLUMNS)
    prompts = folder.prompts.read(index, _PROMPT_COLUMNS)
    chosen = _rows_of(kept["chosen_id"], candidates["candidate_id"], candidates)
    rejected = _rows_of(kept["rejected_id"], candidates["candidate_id"], candidates)
    prompt = _rows_of(kept["prompt_id"], prompts["prompt_id"], prompts)
    columns: dict[str, Any] = {
        name: kept[name] for name in TRIPLE.names if name in kept.column_names
    }
    columns |= {
        **shown_prompts(prompt, context.system_prompt),
        "chosen": _assistant_turn(answer_texts(chosen, with_thoughts=context.keeps_thoughts)),
        "rejected": _assistant_turn(answer_texts(rejected, with_thoughts=context.keeps_thoughts)),
        "policy": _policy_name(chosen),
        "rejected_policy": _policy_name(rejected),
    }
    for name, side in (("chosen", chosen), ("rejected", rejected)):
        columns |= {f"{name}_{one}": side[one] for one in ("reasoning", "reasoning_tokens")}
    return pa.table([columns[name] for name in TRIPLE.names], schema=TRIPLE)


def unpaired_of_block(context: RoundContext, index: int) -> pa.Table:
    """The candidates of block ``index`` that win more, or less, often than not: UNPAIRED.

    One that wins half of the time has no label and is left out, and so is one without text.
    """
    folder = context.folder
    columns = ["chosen_id", "rejected_id", "p_chosen", "reason"]
    scores = candidate_scores(folder.decisions.read(index, columns))
    scores = scores.filter(pc.not_equal(scores["score"], 0.5))
    wanted = ["prompt_id", "tokens", "round", *_CANDIDATE_COLUMNS]
    candidates = folder.candidates.read(index, wanted)
    empty = candidates["candidate_id"].filter(pc.match_substring_regex(candidates["text"], BLANK))
    scores = scores.filter(
        pc.invert(pc.is_in(scores["candidate_id"], value_set=empty.combine_chunks()))
    )
    prompts = folder.prompts.read(index, _PROMPT_COLUMNS)
    found = _rows_of(scores["candidate_id"], candidates["candidate_id"], candidates)
    prompt = _rows_of(found["prompt_id"], prompts["prompt_id"], prompts)
    columns_of: dict[str, Any] = {name: found[name] for name in ("prompt_id", "tokens", "round")}
    columns_of |= {name: scores[name] for name in ("candidate_id", "score", "pairs")}
    columns_of |= {
        **shown_prompts(prompt, context.system_prompt),
        "completion": _assistant_turn(answer_texts(found, with_thoughts=context.keeps_thoughts)),
        "label": pc.greater(scores["score"], 0.5),
        "policy": _policy_name(found),
        "reasoning": found["reasoning"],
        "reasoning_tokens": found["reasoning_tokens"],
    }
    return pa.table([columns_of[name] for name in UNPAIRED.names], schema=UNPAIRED)


def _add_unpaired(context: RoundContext, test_share: float) -> dict[Path, int]:
    """Write the round's single answers into files by split; returns the rows of each file."""
    blocks = context.folder.decisions.indices()
    tables = [unpaired_of_block(context, index) for index in blocks]
    table = pa.concat_tables([UNPAIRED.empty_table(), *tables])
    splits = _splits(table["prompt_id"], context.seed, test_share)
    files: dict[Path, int] = {}
    schema = _schema_of(context, UNPAIRED)
    for split in SPLITS:
        rows = table.filter(pa.array(splits == split))
        for number, start in enumerate(range(0, len(rows), FILE_ROWS)):
            part = rows.slice(start, FILE_ROWS)
            path = _file(context, UNPAIRED_FOLDER, split, number)
            write_shard(part.select(schema.names), path, schema, row_group_size=ROW_GROUP_ROWS)
            files[path] = len(part)
    return files


def _rows_of(ids: pa.ChunkedArray, keys: pa.ChunkedArray, table: pa.Table) -> pa.Table:
    return table.take(pc.index_in(ids, value_set=keys.combine_chunks()))


def _assistant_turn(texts: pa.ChunkedArray) -> pa.Array:
    content = texts.combine_chunks()
    role = pa.array(["assistant"]).take(pa.array(np.zeros(len(content), dtype=np.int8)))
    turns = pa.StructArray.from_arrays([role, content], fields=list(MESSAGES.value_type))
    return pa.ListArray.from_arrays(pa.array(np.arange(len(content) + 1, dtype=np.int32)), turns)


def _policy_name(candidates: pa.Table) -> pa.ChunkedArray:
    return pc.binary_join_element_wise(candidates["policy"], candidates["policy_revision"], "@")


def shown_prompts(prompts: pa.Table, system_prompt: str | None) -> dict[str, Any]:
    """The prompts as the policy was shown them: the columns ``prompt``, ``prompt_turns`` and
    ``tools``."""
    turns, tools = prompts["turns"], prompts["tools"]
    if not system_prompt:
        return {"prompt": prompts["messages"], "prompt_turns": turns, "tools": tools}
    shown = [as_sampled(row, system_prompt) for row in prompts.to_pylist()]
    return {
        "prompt": pa.array(list(map(plain, shown)), MESSAGES),
        "prompt_turns": pa.array(list(map(turns_text, shown)), pa.string()),
        "tools": tools,
    }


def _schema_of(context: RoundContext, schema: pa.Schema) -> pa.Schema:
    """``schema`` without the columns for tools where no prompt of the run has any: all files of a
    dataset have the same columns."""
    for prompts in context.run.prompts.iter(["tools", "turns"]):
        if any(prompts[name].null_count < len(prompts) for name in prompts.column_names):
            return schema
    unused = ("tools", "prompt_turns")
    return pa.schema([field for field in schema if field.name not in unused])


def _file(context: RoundContext, folder: str, split: str, number: int) -> Path:
    name = f"{split}-round-{context.index:03d}-{number:05d}.parquet"
    return context.run.dataset / folder / name


def _extend_dataset(context: RoundContext, test_share: float) -> dict[Path, int]:
    """Copy the round's triples into files by split; returns the rows of each file."""
    files: dict[Path, int] = {}
    gathered: dict[str, list[pa.Table]] = {"train": [], "test": []}
    written = {"train": 0, "test": 0}
    schema = _schema_of(context, TRIPLE)

    def flush(split: str) -> None:
        table = pa.concat_tables(gathered[split]).select(schema.names)
        number = written[split] // FILE_ROWS
        path = _file(context, TRIPLES_FOLDER, split, number)
        write_shard(table, path, schema, row_group_size=ROW_GROUP_ROWS)
        files[path] = len(table)
        gathered[split] = []
        written[split] += len(table)

    for block in context.folder.triples.iter():
        splits = _splits(block["prompt_id"], context.seed, test_share)
        for split, parts in gathered.items():
            rows = block.filter(pa.array(splits == split))
            while len(rows):
                room = FILE_ROWS - sum(map(len, parts))
                parts.append(rows.slice(0, room))
                rows = rows.slice(room)
                if sum(map(len, parts)) == FILE_ROWS:
                    flush(split)
                    parts = gathered[split]
    for split, parts in gathered.items():
        if parts:
            flush(split)
    return files


def _splits(prompt_ids: pa.ChunkedArray, seed: int, test_share: float) -> np.ndarray:
    return np.array(
        [
            split_of(prompt_id, seed=seed, test_share=test_share)
            for prompt_id in prompt_ids.to_pylist()
        ],
        dtype="U5",
    )
