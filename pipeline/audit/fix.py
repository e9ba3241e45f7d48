"""`prefloop audit --fix`: the cleaned dataset, with every dropped row and its reason beside it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from prefloop.data.checks.text_hashes import text_hashes
from prefloop.data.errors import InputError
from prefloop.data.preferences.columns import OF_TOOLS
from prefloop.data.quarantine import BadRow, quarantine_table
from prefloop.data.schemas import MESSAGES
from prefloop.data.shards import atomic_write_json, atomic_write_text
from prefloop.data.storage.begun_folder import begin_folder
from prefloop.data.storage.dataset_folder import configs_yaml
from prefloop.pipeline.audit.audit_options import AuditOptions
from prefloop.pipeline.audit.check import Audit, batches

FIXED = pa.schema(
    [
        pa.field("prompt", MESSAGES, nullable=False),
        pa.field("chosen", MESSAGES, nullable=False),
        pa.field("rejected", MESSAGES, nullable=False),
        pa.field("source", pa.string(), nullable=False),
        pa.field("row", pa.int64(), nullable=False),  # 1-based row (line) in its source
        # JSON, as in a run's dataset: turns that call tools, and the tools
        pa.field("prompt_turns", pa.string()),
        pa.field("tools", pa.string()),
    ]
)
"""A row of the cleaned dataset; TRL takes it as it is."""

DROPPED_ROW = pa.schema(
    [
        pa.field("source", pa.string(), nullable=False),
        pa.field("row", pa.int64()),
        pa.field("field", pa.string()),  # column at fault, null if the whole row is
        pa.field("reason", pa.string(), nullable=False),
        pa.field("detail", pa.string(), nullable=False),
        pa.field("content", pa.string(), nullable=False),  # the row, so nothing is lost
    ]
)
"""A row that is not in the cleaned dataset."""

_FILE_ROWS = 100_000
_DETAILS = {
    "identical": "chosen and rejected are the same text",
    "contradictory": "the other way round in",
    "circular": "in a cycle of preferences",
    "duplicate": "the same as",
    "near_duplicate_prompt": "the prompt nearly repeats an earlier one",
}


def write_fixed(found: Audit, path: str, out: Path, options: AuditOptions) -> dict[str, int]:
    """Write what ``found`` keeps of ``path`` to ``out`` and return the counts of rows.

    ``out`` gets ``data/train-*.parquet`` (schema FIXED), ``dropped/part-*.parquet`` (DROPPED_ROW),
    ``audit.json`` and a card; it appears when all of it is written. Raises ``InputError`` where it
    is not empty, or where the dataset changed since it was audited.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"{out}: is not empty: give --fix a new folder")
    partial = begin_folder(out)
    kept = _Writer(partial / "data", "train-{:05d}.parquet", FIXED)
    dropped = _Writer(partial / "dropped", "part-{:05d}.parquet", DROPPED_ROW)
    try:
        with kept, dropped:
            for rows, lost in _split(found, path, options):
                kept.write(rows)
                dropped.write(lost)
        if kept.rows + dropped.rows != found.pairs + sum(found.bad.values()):
            raise InputError(f"{path}: changed while it was read: audit it again")
        counts = {"rows": found.rows, "kept": kept.rows, "dropped": dropped.rows}
        atomic_write_json(partial / "audit.json", {**found.as_dict(), "fix": counts})
        configs = configs_yaml(partial, {"default": {"train": "data/train-*.parquet"}})
        atomic_write_text(partial / "README.md", _card(found, counts, configs))
        if out.exists():
            out.rmdir()
        partial.rename(out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return counts


def _split(found: Audit, path: str, options: AuditOptions) -> Iterator[tuple[pa.Table, pa.Table]]:
    """Batches of kept rows and of dropped ones."""
    at = 0
    for batch in batches(path, options):
        pairs, size = batch.pairs.combine_chunks(), len(batch.pairs)
        same = size == 0 or np.array_equal(
            text_hashes(pairs["chosen"].chunk(0)), found.chosen_hashes[at : at + size]
        )
        if not same:
            raise InputError(f"{path}: changed while it was read: audit it again")
        codes = found.drops[at : at + size]
        keep = pairs.filter(pa.array(codes == 0))
        lost = pairs.filter(pa.array(codes != 0))
        places = at + np.flatnonzero(codes)
        yield _fixed(keep), pa.concat_tables([_dropped(batch.bad), _lost(lost, places, found)])
        at += size


def _fixed(pairs: pa.Table) -> pa.Table:
    answers = [_as_turn(pairs[name].combine_chunks()) for name in ("chosen", "rejected")]
    others = (pairs[name] for name in ("source", "row", *OF_TOOLS))
    return pa.table([pairs["prompt"], *answers, *others], schema=FIXED)


def _as_turn(texts: pa.Array) -> pa.Array:
    turns = pa.StructArray.from_arrays(
        [pa.repeat("assistant", len(texts)), texts], ["role", "content"]
    )
    offsets = pa.array(np.arange(len(texts) + 1), pa.int32())
    return pa.ListArray.from_arrays(offsets, turns).cast(MESSAGES)


def _dropped(rows: pa.Table) -> pa.Table:
    return rows.select(DROPPED_ROW.names).cast(DROPPED_ROW)


def _lost(pairs: pa.Table, places: Any, found: Audit) -> pa.Table:
    rows = []
    for place, pair in zip(places.tolist(), pairs.to_pylist(), strict=True):
        reason = found.reasons[found.drops[place]]
        detail = _DETAILS.get(reason, "the prompt is in the evaluation set")
        if reason in ("duplicate", "contradictory"):
            detail += f" {found.where[found.partners[place]]}"
        content = {name: pair[name] for name in ("prompt", "chosen", "rejected")}
        content |= {name: pair[name] for name in OF_TOOLS if pair[name] is not None}
        text = json.dumps(content, ensure_ascii=False)
        rows.append(BadRow(pair["source"], pair["row"], None, reason, detail, text))
    return _dropped(quarantine_table("audit", rows))


class _Writer:
    """Tables into files of some 100,000 rows each; at least one file."""

    def __init__(self, folder: Path, name: str, schema: pa.Schema) -> None:
        self._folder, self._name, self._schema = folder, name, schema
        self._files = self._in_file = self.rows = 0
        self._writer: pq.ParquetWriter | None = None

    def __enter__(self) -> _Writer:
        self._folder.mkdir(parents=True)
        self._open()
        return self

    def __exit__(self, *_: object) -> None:
        if self._writer:
            self._writer.close()

    def write(self, table: pa.Table) -> None:
        if not len(table):
            return
        if self._in_file >= _FILE_ROWS:
            self._open()
        assert self._writer is not None
        self._writer.write_table(table)
        self._in_file += len(table)
        self.rows += len(table)

    def _open(self) -> None:
        if self._writer:
            self._writer.close()
        path = self._folder / self._name.format(self._files)
        self._writer = pq.ParquetWriter(path, self._schema, compression="zstd")
        self._files += 1
        self._in_file = 0


def _card(found: Audit, counts: dict[str, int], configs: str) -> str:
    by_reason = pc.value_counts(pa.array(found.drops)).to_pylist() if found.pairs else []
    lines = [f"| {reason} | {count:,} |" for reason, count in found.bad.items()]
    lines += [
        f"| {found.reasons[each['values']]} | {each['counts']:,} |"
        for each in by_reason
        if each["values"]
    ]
    table = "\n".join(["| dropped because | rows |", "| --- | --- |", *lines]) if lines else ""
    return f"""---
tags:
- preference
- dpo
- prefloop
{configs}
---

# Preference pairs, audited

{counts["rows"]:,} rows were read, {counts["kept"]:,} are kept in `data/` and {counts["dropped"]:,}
dropped: these lie in `dropped/` with their reasons. `audit.json` has all findings.

Columns: `prompt`, `chosen` and `rejected` as lists of turns; `source` and `row` say where a pair
was read.

{table}
"""
