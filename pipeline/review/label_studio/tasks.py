"""`prefloop review export`: pairs as tasks that Label Studio takes, each once."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from prefloop.data.shards import write_if_changed
from prefloop.data.storage.whole_files import create_file
from prefloop.pipeline.review.drawing import Drawing, draw_pairs, note_pairs, noted
from prefloop.pipeline.review.folder import Review, ReviewFolder
from prefloop.pipeline.review.guidelines import guidelines
from prefloop.pipeline.review.label_studio.labelling import (
    hash_of,
    instructions,
    interface,
    task,
    texts_of,
)
from prefloop.pipeline.review.subjects import Subject, Subjects

_CHUNK = 500
"""Pairs whose texts are in memory at a time."""


@dataclass(frozen=True)
class ExportedTasks:
    """What Label Studio can be given now."""

    review: Review
    files: tuple[Path, ...]
    """Of tasks, in the order in which they came to be."""
    new: tuple[Path, ...]
    """Those that this export made: who has imported the others needs these only."""
    pairs: int
    """In all files together."""
    interface: Path
    instructions: Path


def export_tasks(
    subjects: Subjects,
    folder: ReviewFolder,
    drawing: Drawing,
    *,
    overlap: int,
    source: str,
    is_run: bool,
) -> ExportedTasks:
    """Draw pairs and write those that no file has yet into one more file of tasks.

    Label Studio takes a task that it has for a new one, so each pair is in one file only. Which
    answer stands as A is drawn as for Argilla. Killed in the middle, the next call makes the file.
    Raises :class:`ReviewError`.
    """
    review = Review(
        name=folder.root.name, workspace="", server="label-studio", dataset_id=uuid.uuid4().hex,
        mode="blind", overlap=overlap, source=source, is_run=is_run, tool="label-studio",
    )  # fmt: skip
    if folder.exists():
        review = replace(folder.read_of("label-studio"), overlap=overlap)
    wanted = draw_pairs(subjects, folder, drawing)
    folder.write(review)
    known = folder.pairs()
    missing = [pair for pair in wanted if pair not in known]
    note_pairs(folder, [_noted(one, drawing.seed) for one in _read(subjects, missing)])
    known = folder.pairs()
    new = []
    for part in folder.pushed.indices():
        path = folder.tasks / f"tasks-{part:03d}.json"
        if path.exists():
            continue
        pairs = folder.pushed.read(part, ["pair_id"])["pair_id"].to_pylist()
        tasks = (task(one, known[one.pair_id], review.dataset_id) for one in _read(subjects, pairs))
        path.parent.mkdir(exist_ok=True)
        create_file(path, partial(_write, tasks))
        new.append(path)
    label, page = folder.tasks / "interface.xml", folder.tasks / "instructions.html"
    write_if_changed(label, interface())
    write_if_changed(page, instructions(guidelines(subjects.label, "blind")))
    files = tuple(sorted(folder.tasks.glob("tasks-*.json")))
    return ExportedTasks(review, files, tuple(new), folder.pushed.rows(), label, page)


def _noted(subject: Subject, seed: int) -> dict[str, Any]:
    row = noted(subject, seed)
    return {**row, "shown": hash_of(texts_of(subject, row["answer_a_id"], row["answer_b_id"]))}


def _read(subjects: Subjects, pairs: list[str]) -> Iterator[Subject]:
    for start in range(0, len(pairs), _CHUNK):
        yield from subjects.read(pairs[start : start + _CHUNK])


def _write(tasks: Iterator[dict[str, Any]], path: Path) -> None:
    """A JSON list, a task a line."""
    with path.open("w", encoding="utf-8") as target:
        for number, one in enumerate(tasks):
            before = ",\n" if number else "[\n"
            target.write(before + json.dumps(one, ensure_ascii=False))
        target.write("\n]\n")
