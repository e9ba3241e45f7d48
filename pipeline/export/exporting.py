"""``prefloop export``: triples, written as another project reads them."""

from __future__ import annotations

import json
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from prefloop.data.errors import InputError
from prefloop.data.hashing import prompt_id
from prefloop.data.schemas import MESSAGES
from prefloop.pipeline.export.beside import files_beside
from prefloop.pipeline.export.row_formats import ROW_FORMATS, PairToSay, Unsayable
from prefloop.pipeline.policies.train_alone import find_sources

_COLUMNS = ("prompt", "chosen", "rejected", "prompt_id", "tools", "prompt_turns",
            "chosen_reasoning", "rejected_reasoning")  # fmt: skip
_LISTS = ("label-studio",)
"""Forms that are one JSON list instead of a line a row."""
LEFT_OUT = "left_out.jsonl"
TRAINED_PROMPT = "its prompt is in the training split"
"""Why a row of the test split was left out."""


@dataclass(frozen=True)
class Exported:
    """What was written."""

    form: str
    out: Path
    rows: dict[str, int]
    """By file."""
    left_out: dict[str, int]
    """By reason; the rows are in ``left_out.jsonl``."""
    without_thoughts: int
    """Rows of which an answer was thought about: no form has a place for the thought."""

    def as_dict(self) -> dict[str, Any]:
        """All of it as values that ``json`` can write."""
        return asdict(self) | {"out": str(self.out)}


def export_triples(sources: Sequence[Path], form: str, out: Path, *, seed: int = 0) -> Exported:
    """Write the triples of runs, dataset folders and Parquet files to the folder ``out``, a file a
    split, as the project ``form`` reads them.

    A prompt that is in the training split of one source and in the test split of another is in the
    training split alone. The folder appears whole or not at all. Raises ``InputError`` for an
    unknown form, sources without triples, a folder that exists, or where no row can be said in the
    form, and ``RunError`` where a run's dataset is not whole.
    """
    if form not in ROW_FORMATS:
        raise InputError(f"--to {form!r}: write one of {', '.join(ROW_FORMATS)}")
    if out.exists():
        raise InputError(f"{out}: is there already: choose another folder, or move it away")
    found = find_sources(sources)
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{out.name}-", dir=out.parent) as work:
        folder = Path(work) / "made"
        folder.mkdir()
        done = _write(form, {"train": found.train, "test": found.test}, folder, seed)
        folder.replace(out)
    return Exported(form, out, *done)


def _write(
    form: str, splits: dict[str, tuple[Path, ...]], folder: Path, seed: int
) -> tuple[dict[str, int], dict[str, int], int]:
    rows: Counter[str] = Counter()
    left_out: Counter[str] = Counter()
    thoughts, tools, trained = 0, False, set[str]()
    end = "json" if form in _LISTS else "jsonl"
    with (folder / LEFT_OUT).open("w", encoding="utf-8") as lost:
        for split, files in splits.items():
            if not files:
                continue
            name = f"{split}.{end}"
            with (folder / name).open("w", encoding="utf-8") as target:
                for source, number, row in _rows(files):
                    try:
                        pair = PairToSay.of(row, seed)
                        said = ROW_FORMATS[form](pair)
                        prompt = prompt_id(row["prompt"])
                        if split == "test" and prompt in trained:
                            raise Unsayable(TRAINED_PROMPT)
                    except Unsayable as reason:
                        left_out[str(reason)] += 1
                        at = {"file": str(source), "row": number, "reason": str(reason)}
                        lost.write(json.dumps({**at, **row}, ensure_ascii=False) + "\n")
                        continue
                    before = ("[\n" if not rows[name] else ",\n") if form in _LISTS else ""
                    after = "" if form in _LISTS else "\n"
                    target.write(before + json.dumps(said, ensure_ascii=False) + after)
                    rows[name] += 1
                    if split == "train":
                        trained.add(prompt)
                    thoughts += pair.thought_about
                    tools = tools or bool(pair.tools)
                if form in _LISTS:
                    target.write("\n]\n" if rows[name] else "[]\n")
    if not rows:
        most = left_out.most_common(1)
        why = f"{most[0][1]:,} of them because of {most[0][0]}" if most else "there is none"
        raise InputError(f"no triple can be written for {form}: {why}")
    if not left_out:
        (folder / LEFT_OUT).unlink()
    for name, text in files_beside(form, list(rows), tools=tools).items():
        (folder / name).write_text(text, encoding="utf-8")
    for name in [f"{split}.{end}" for split in splits]:
        if not rows[name]:
            (folder / name).unlink(missing_ok=True)
    return {name: count for name, count in rows.items() if count}, dict(left_out), thoughts


def _rows(files: Sequence[Path]) -> Iterator[tuple[Path, int, dict[str, Any]]]:
    """Each row with its file and its number there, from 1."""
    for file in files:
        try:
            opened = pq.ParquetFile(file)
        except (pa.ArrowInvalid, OSError) as error:
            raise InputError(f"{file}: no Parquet file of triples: {error}") from None
        with opened:
            schema = opened.schema_arrow
            for column in ("prompt", "chosen", "rejected"):
                if column not in schema.names or not _are_turns(schema.field(column).type):
                    raise InputError(
                        f"{file}: holds no triples of turns (column {column!r}): "
                        "`prefloop audit FILE --fix DIR` makes a dataset of it"
                    )
            columns = [name for name in _COLUMNS if name in schema.names]
            number = 0
            for batch in opened.iter_batches(1_000, columns=columns):
                for row in batch.to_pylist():
                    number += 1
                    yield file, number, row


def _are_turns(kind: pa.DataType) -> bool:
    if not pa.types.is_list(kind) and not pa.types.is_large_list(kind):
        return False
    turn = kind.value_type
    names = {field.name for field in MESSAGES.value_type}
    return pa.types.is_struct(turn) and names <= {field.name for field in turn}
