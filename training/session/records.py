"""The record that a trained model carries: how it was made, and each step of its training."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from prefloop.training.errors import TrainingError

RECORD = "training.jsonl"
"""File in a model's folder: one line on the training, then one for each optimiser step.

Not a .json file: timings must not enter the revision of the model (``prefloop.data.hashing``)."""


def write_record(
    folder: Path, fingerprint: str, record: dict[str, Any], history: Sequence[dict[str, float]]
) -> None:
    """Write what ``read_record`` reads. ``fingerprint`` says what the model was made from."""
    lines = [json.dumps(line) for line in ({**record, "fingerprint": fingerprint}, *history)]
    (folder / RECORD).write_text("\n".join(lines) + "\n", encoding="utf-8")


def read_record(folder: Path, fingerprint: str) -> tuple[dict[str, Any], list[dict[str, float]]]:
    """Record and history of the model in ``folder``.

    Raises ``TrainingError`` where it was made from something else than ``fingerprint`` says.
    """
    file = folder / RECORD
    lines = file.read_text(encoding="utf-8").splitlines() if file.is_file() else []
    record = json.loads(lines[0]) if lines else {}
    if record.pop("fingerprint", None) != fingerprint:
        raise TrainingError(
            f"{folder} exists and was not made from these data and settings: move it away, or "
            "train into another folder"
        )
    return record, [json.loads(line) for line in lines[1:]]
