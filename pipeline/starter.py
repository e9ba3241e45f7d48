"""``prefloop init``: a commented config and sample prompts to start from."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

from prefloop.data.errors import StorageError
from prefloop.data.shards import atomic_write_text

_STARTER = {"prefloop.yaml": "starter.yaml", "prompts.jsonl": "starter_prompts.jsonl"}


def write_starter(folder: Path) -> list[Path]:
    """Write the starter files into ``folder``; files that exist are left as they are.

    Returns the paths written. Raises :class:`StorageError` where the folder cannot be written.
    """
    templates = files("prefloop.pipeline") / "templates"
    written = []
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(f"{folder}: {error.strerror}: name another folder") from None
    for name, template in _STARTER.items():
        path = folder / name
        if not path.exists():
            text = (templates / template).read_text(encoding="utf-8")
            atomic_write_text(path, text.replace("{folder}", str(folder)))
            written.append(path)
    return written
