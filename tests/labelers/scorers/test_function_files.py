import sys
from pathlib import Path

import pytest

from prefloop.labelers.scorers.function_files import function_files


def names(function: str, root: Path) -> list[str]:
    return [file.relative_to(root.resolve()).as_posix() for file in function_files(function)]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", [*sys.path])
    return tmp_path


def written(folder: Path, **modules: str) -> None:
    folder.mkdir(exist_ok=True)
    for name, text in modules.items():
        (folder / f"{name}.py").write_text(text)


def test_modules_of_one_s_own_are_found_through_others(here: Path) -> None:
    written(
        here,
        scoring_top="import json, numpy\nimport scoring_units\nfrom scoring_rules import deep\n",
        scoring_units="def later():\n    import scoring_lazy\n",
        scoring_lazy="raise RuntimeError('run')\n",
        scoring_other="",
    )
    written(
        here / "scoring_rules",
        __init__="from . import near\n",
        near="import prefloop.data.hashing\n",
        deep="from .near import *\n",
        unused="",
    )
    assert names("scoring_top:score", here) == [
        "scoring_lazy.py",
        "scoring_rules/__init__.py",
        "scoring_rules/deep.py",
        "scoring_rules/near.py",
        "scoring_top.py",
        "scoring_units.py",
    ]


def test_what_cannot_be_read_leaves_the_file_itself(here: Path) -> None:
    written(here, scoring_broken="import scoring_gone\ndef score(:\n")
    assert names("scoring_broken:score", here) == ["scoring_broken.py"]
    assert function_files("scoring_nowhere:score") == []
    assert function_files("scoring_nowhere.deep:score") == []


def test_what_is_installed_is_its_own_file_alone(here: Path) -> None:
    [file] = function_files("json.tool:main")
    assert file.name == "tool.py"
    assert not file.is_relative_to(here)


def test_a_folder_without_an_init_file_is_read_as_far_as_its_own_file(here: Path) -> None:
    written(here / "scoring_loose", rules="import scoring_beside\n")
    written(here, scoring_beside="", scoring_user="import scoring_loose.rules\n")
    assert names("scoring_loose.rules:score", here) == ["scoring_loose/rules.py"]
    assert names("scoring_user:score", here) == ["scoring_user.py"]
