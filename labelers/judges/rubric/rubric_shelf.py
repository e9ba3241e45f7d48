"""Criteria that were written for prompts, kept in a folder: those of a prompt never change."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from prefloop.data.hashing import content_id
from prefloop.data.prompts.criteria import Criterion, criteria_of
from prefloop.data.shards import as_json, damaged, read_json_object
from prefloop.data.storage.whole_files import LocalFiles

_REMEDY = "delete it, and its criteria are written again"


class RubricShelf:
    """A folder with a JSON file for each time that criteria were written, of some prompts each.

    What is kept is there before anybody is asked by it, so a resumed run asks by the same. Where
    two processes wrote criteria for one prompt, those in the first file by name count, whoever
    looks.
    """

    def __init__(self, folder: Path, about: Mapping[str, Any]) -> None:
        """``about``: who writes them, as the files say it."""
        self._folder = folder
        self._about = dict(about)
        self._files: dict[str, Path] | None = None
        self._read = lru_cache(maxsize=16)(self._rubrics_in)

    def of(self, prompt_id: str) -> tuple[Criterion, ...] | None:
        """The criteria of a prompt; null where none were written. Raises ``StorageError``."""
        file = self._where().get(prompt_id)
        if file is None:
            return None
        try:
            return criteria_of(self._read(file)[prompt_id]["criteria"])
        except (KeyError, TypeError, ValueError) as error:
            raise damaged(file, f"no criteria: {error}", _REMEDY) from None

    def keep(self, written: Mapping[str, tuple[tuple[Criterion, ...], str]]) -> None:
        """Keep the criteria of prompts, by their ids, with what the engine said. Where another
        process kept some for the same prompts meanwhile, those stay. Raises ``StorageError``."""
        files = self._where()
        if not written:
            return
        rubrics = {
            prompt_id: {"criteria": [one.model_dump(mode="json") for one in criteria], "said": said}
            for prompt_id, (criteria, said) in sorted(written.items())
        }
        file = self._folder / f"{content_id(*rubrics)}.json"
        content = as_json({**self._about, "rubrics": rubrics})
        LocalFiles(self._folder).create(file.name, content.encode())
        for prompt_id in rubrics:
            files.setdefault(prompt_id, file)

    def _where(self) -> dict[str, Path]:
        if self._files is None:
            self._files = {}
            for file in sorted(self._folder.glob("*.json")):
                for prompt_id in self._rubrics_in(file):
                    self._files.setdefault(prompt_id, file)
        return self._files

    def _rubrics_in(self, file: Path) -> dict[str, Any]:
        found = read_json_object(file, _REMEDY).get("rubrics")
        if not isinstance(found, dict):
            raise damaged(file, "no rubrics", _REMEDY)
        return found
