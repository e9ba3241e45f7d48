"""The checkpoints of a training on disk: whose they are, and whether they are whole.

They lie in a folder that the model's name is part of, so that two trainings may run side by side
and no file of others is touched. A checkpoint counts once its marker is there, which is written
last and carries size and checksum of each file: what was cut or changed since is not resumed from.
"""

from __future__ import annotations

import json
import logging
import shutil
import zlib
from pathlib import Path

logger = logging.getLogger(__name__)

MARKER = "prefloop_complete"
"""File in a checkpoint folder, written last: the fingerprint of what is being trained on what."""
SUMS = "prefloop_sums.json"
"""File in a checkpoint folder: size and checksum of each of its files."""
SNAPSHOTS = "put-aside"
"""Folder beside the checkpoints for weights that were healthy."""
WEIGHTS = "weights"
"""Folder beside the checkpoints for weights that are sampled from."""
_CHUNK = 1 << 22


def checkpoint_folder(out: Path) -> Path:
    """Where the checkpoints of the training that makes ``out`` lie."""
    return out.with_name(f".{out.name}.checkpoints")


def adopt_earlier(out: Path, fingerprint: str) -> None:
    """Take over what an earlier version left of this very training in the folder ``checkpoints``
    beside ``out``; all else in it stays."""
    old, new = out.parent / "checkpoints", checkpoint_folder(out)
    ours = [folder for folder in old.glob("checkpoint-*") if _marked(folder) == fingerprint]
    if not ours or new.exists():
        return
    new.mkdir(parents=True)
    for folder in (*ours, old / SNAPSHOTS, old / WEIGHTS):
        if folder.is_dir():
            folder.rename(new / folder.name)
    if not any(old.iterdir()):
        old.rmdir()


def mark(checkpoint: Path, fingerprint: str) -> None:
    """Say that ``checkpoint`` is whole."""
    (checkpoint / SUMS).write_text(json.dumps(sums(checkpoint)), encoding="utf-8")
    (checkpoint / MARKER).write_text(fingerprint, encoding="utf-8")


def resumable(checkpoints: Path, fingerprint: str, *, tidy: bool = True) -> str | None:
    """The last complete checkpoint of this very training; ``tidy`` removes all others."""
    found: dict[int, Path] = {}
    for folder in checkpoints.glob("checkpoint-*"):
        if _marked(folder) == fingerprint:
            found[int(folder.name.rpartition("-")[2])] = folder
        elif tidy:
            shutil.rmtree(folder)
    for step in sorted(found, reverse=True):
        damage = damage_of(found[step])
        if damage is None:
            return str(found[step])
        if tidy:
            logger.warning(
                "%s is damaged (%s): the training goes on from an earlier checkpoint, or from its "
                "beginning",
                found[step], damage,
            )  # fmt: skip
            shutil.rmtree(found[step])
    return None


def sums(folder: Path) -> dict[str, list[int]]:
    """Size and checksum of each file below ``folder``."""
    return {
        str(file.relative_to(folder)): [file.stat().st_size, _checksum(file)]
        for file in sorted(folder.rglob("*"))
        if file.is_file() and file.name not in (MARKER, SUMS)
    }


def damage_of(checkpoint: Path) -> str | None:
    """What is wrong with ``checkpoint``; null where nothing is, or nothing is known of it."""
    file = checkpoint / SUMS
    if not file.is_file():
        return None
    try:
        expected = json.loads(file.read_text(encoding="utf-8"))
    except ValueError:
        return f"{SUMS} cannot be read"
    return damage(checkpoint, expected)


def damage(folder: Path, expected: dict[str, list[int]]) -> str | None:
    """The first file of ``folder`` that is not as ``expected``, in words; null where all are."""
    for name, (size, checksum) in expected.items():
        file = folder / name
        if not file.is_file():
            return f"{name} is missing"
        if file.stat().st_size != size:
            return f"{name} has {file.stat().st_size} of {size} bytes"
        if _checksum(file) != checksum:
            return f"{name} was changed"
    return None


def _marked(folder: Path) -> str | None:
    marker = folder / MARKER
    return marker.read_text(encoding="utf-8", errors="replace") if marker.is_file() else None


def _checksum(file: Path) -> int:
    found = 0
    with file.open("rb") as handle:
        while chunk := handle.read(_CHUNK):
            found = zlib.crc32(chunk, found)
    return found
