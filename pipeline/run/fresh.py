"""Whether a page that was made of a run's files is still what they say."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from pathlib import Path

import prefloop.pipeline
from prefloop.pipeline.run.run_dir import FINAL_FOLDER, RunDir

_MAKERS = [Path(prefloop.pipeline.__file__).parent / name for name in ("report", "templates")]
"""What makes the pages: a new version of prefloop makes them anew."""


def report_is_fresh(run: RunDir) -> bool:
    """Whether nothing that the report tells of changed since it was written."""
    passed = {run.report.name, run.cache.name, run.tracking.name}
    return _is_younger(
        run.report,
        [
            path
            for path in (run.root.iterdir() if run.report.exists() else ())
            if path.name not in passed and not path.name.startswith(".lock")
        ],
    )


def card_is_fresh(run: RunDir) -> bool:
    """Whether nothing that the dataset's card tells of changed since it was written."""
    parts = [run.config, run.root / FINAL_FOLDER]
    parts += [path for path in run.dataset.glob("*") if path != run.card]
    for folder in run.rounds():
        parts += [folder.decisions.folder, folder.prompts.folder, folder.written]
        parts.append(folder.metrics.folder)
    return _is_younger(run.card, parts)


def _is_younger(page: Path, parts: Iterable[Path]) -> bool:
    """Whether ``page`` was written after all that is in ``parts``; removals count too."""
    try:
        written = page.stat().st_mtime_ns
        if written > time.time_ns():  # the clock was put back: what came after it seems older
            return False
        return all(_newest(part) < written for part in [*parts, *_MAKERS] if part.exists())
    except OSError:
        return False


def _newest(part: Path) -> int:
    found = part.stat().st_mtime_ns
    if part.is_dir():
        with os.scandir(part) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    if entry.name != "__pycache__":
                        found = max(found, _newest(Path(entry.path)))
                else:
                    found = max(found, entry.stat().st_mtime_ns)
    return found
