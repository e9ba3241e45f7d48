"""The record that a trained model carries: how it was made, and each step of its training.

It is written last, with the checksums of all other files: by it a model is known to be whole.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from prefloop.training.errors import TrainingError
from prefloop.training.session.checkpoint_folder import damage, sums

RECORD = "training.jsonl"
"""File in a model's folder: one line on the training, then one for each optimiser step.

Not a .json file: timings must not enter the revision of the model (``prefloop.data.hashing``)."""


def write_record(
    folder: Path, fingerprint: str, record: dict[str, Any], history: Sequence[dict[str, float]]
) -> None:
    """Write what ``read_record`` reads. ``fingerprint`` says what the model was made from."""
    marked = {**record, "fingerprint": fingerprint, "files": sums(folder)}
    lines = [json.dumps(line) for line in (marked, *history)]
    (folder / RECORD).write_text("\n".join(lines) + "\n", encoding="utf-8")


def summary_of(folder: Path) -> dict[str, Any] | None:
    """The record of the model in ``folder``, without the steps; null where it has none."""
    file = folder / RECORD
    if not file.is_file():
        return None
    with file.open(encoding="utf-8") as lines:
        try:
            record: dict[str, Any] = json.loads(lines.readline())
        except ValueError:
            return None
    return record


def history_of(folder: Path) -> list[dict[str, float]]:
    """Each step of the training of the model in ``folder``; empty where it has no record."""
    file = folder / RECORD
    if not file.is_file():
        return []
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()[1:]]


def harm_to(folder: Path) -> str | None:
    """What happened to the model in ``folder`` since it was written; null where nothing is known
    to, as of models of versions that wrote no record."""
    if not folder.exists():
        return "is missing"
    if not (folder / RECORD).is_file():
        return None
    record = summary_of(folder)
    if record is None:
        return f"is damaged ({RECORD} cannot be read)"
    harm = damage(folder, record.get("files", {}))
    return harm and f"is damaged ({harm})"


def guard_of(folder: Path) -> dict[str, Any] | None:
    """The guard that stopped the training of the model in ``folder``; null where none did, or the
    model has no record."""
    guard: dict[str, Any] | None = (summary_of(folder) or {}).get("guard")
    return guard


def read_record(folder: Path, fingerprint: str) -> tuple[dict[str, Any], list[dict[str, float]]]:
    """Record and history of the model in ``folder``.

    Raises ``TrainingError`` where it was made from something else than ``fingerprint`` says, or
    its files are not as they were written.
    """
    file = folder / RECORD
    lines = file.read_text(encoding="utf-8").splitlines() if file.is_file() else []
    try:
        record = json.loads(lines[0]) if lines else {}
    except ValueError:
        record = {}
    if record.pop("fingerprint", None) != fingerprint:
        raise TrainingError(
            f"{folder} exists and was not made from these data and settings: move it away, or "
            "train into another folder"
        )
    harm = damage(folder, record.pop("files", {}))
    if harm:
        raise TrainingError(
            f"{folder} is damaged ({harm}): delete that folder; the same command then makes it "
            "again"
        )
    return record, [json.loads(line) for line in lines[1:]]
