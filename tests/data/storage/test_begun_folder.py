"""Folders that appear when they are whole."""

from __future__ import annotations

from pathlib import Path

import pytest

from prefloop.data.errors import InputError
from prefloop.data.storage.begun_folder import begin_folder


def test_it_appears_whole_and_what_a_killed_process_left_is_removed(tmp_path: Path) -> None:
    out = tmp_path / "new" / "out"
    (begin_folder(out) / "left").touch()
    begun = begin_folder(out)
    (begun / "a").touch()
    assert not out.exists()
    begun.rename(out)
    assert [path.name for path in out.iterdir()] == ["a"]
    assert [path.name for path in out.parent.iterdir()] == ["out"]


def test_somebody_elses_folder_is_left_alone(tmp_path: Path) -> None:
    for name in (".out.partial", ".out.tmp", "out.partial"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "mine").write_text("mine")
    begin_folder(tmp_path / "out").rename(tmp_path / "out")
    assert len(list(tmp_path.glob("*/mine"))) == 3


@pytest.mark.parametrize("path", [".", "", "..", "/", "a/.."])
def test_what_is_there_already_is_no_new_folder(path: str) -> None:
    with pytest.raises(InputError, match="name a new folder"):
        begin_folder(Path(path))
