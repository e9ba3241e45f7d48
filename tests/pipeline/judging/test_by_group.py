"""`prefloop judge-eval --by`: groups of pairs by hand, in the text, the JSON and the page."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import prefloop
from prefloop.data.errors import InputError
from prefloop.labelers.statistics.winrate import win_rate
from prefloop.pipeline.commands.app import app

ROWS = [
    # Easy: the judge is right on all, and the better answer is the longer one in three of four.
    *({"prompt": f"e{i}", "chosen": "long " * (1 + 3 * (i != 3)), "rejected": f"shorter {i}",
       "level": "easy", "n": 1} for i in range(4)),
    # Hard: right on one of three, and both answers are equally long.
    *({"prompt": f"h{i}", "chosen": "good", "rejected": "poor", "level": "<b>hard", "n": 2.0}
      for i in range(3)),
    {"prompt": "none", "chosen": "yes", "rejected": "no!!", "n": None},
]  # fmt: skip
RIGHT = [True] * 4 + [True, False, False] + [True]


@pytest.fixture
def files(tmp_path: Path) -> tuple[str, str]:
    gold, verdicts = tmp_path / "gold.jsonl", tmp_path / "mine.jsonl"
    gold.write_text("\n".join(map(json.dumps, ROWS)))
    said = [{"row": i, "verdict": 1 if right else 2} for i, right in enumerate(RIGHT, 1)]
    verdicts.write_text("\n".join(map(json.dumps, said)))
    return str(gold), str(verdicts)


def test_groups_by_hand(files: tuple[str, str], tmp_path: Path) -> None:
    gold, verdicts = files
    found = prefloop.judge_eval(gold, verdicts=[verdicts], by="level", out=tmp_path / "out")
    [by_level] = found.as_dict()["groups"]
    assert (by_level["judge"], by_level["by"]) == ("mine", "level")
    hard, easy, null = by_level["groups"]
    assert [one["group"] for one in (hard, easy, null)] == ["<b>hard", "easy", "null"]
    assert (easy["pairs"], easy["accuracy"]["value"], easy["longer"]["value"]) == (4, 1.0, 0.75)
    assert easy["difference"]["value"] == 0.25
    assert (hard["accuracy"]["value"], hard["longer"]["value"]) == (pytest.approx(1 / 3), 0.5)
    assert hard["accuracy"]["low"] == win_rate([1, 0, 0]).low
    assert null["longer"]["value"] == 0.0
    assert easy["best_of_n"] is None
    assert all(one["p"] <= one["p_holm"] <= 1 for one in (hard, easy, null))
    assert {one["group"] for one in
            prefloop.judge_eval(gold, verdicts=[verdicts], by=["n"], out=tmp_path / "out")
            .as_dict()["groups"][0]["groups"]} == {"1", "2", "null"}  # fmt: skip


def test_the_command_prints_them(files: tuple[str, str], tmp_path: Path) -> None:
    gold, verdicts = files
    call = ["judge-eval", gold, "--verdicts", verdicts, "--out", str(tmp_path / "out")]
    text = CliRunner().invoke(app, [*call, "--by", "level", "--by", "file"]).stdout
    assert "mine by level" in text
    assert "mine by file" in text
    page = CliRunner().invoke(app, [*call, "--by", "level", "--html"]).stdout
    assert "mine by level" in page
    assert "&lt;b&gt;hard" in page
    assert "<b>hard" not in page


def test_pairs_of_several_files(tmp_path: Path) -> None:
    for name, part in (("x.jsonl", ROWS[:4]), ("y.jsonl", ROWS[4:])):
        (tmp_path / name).write_text("\n".join(map(json.dumps, part)))
    said = [{"prompt": row["prompt"], "a": row["chosen"], "b": row["rejected"], "verdict": 1}
            for row in ROWS]  # fmt: skip
    (tmp_path / "said.json").write_text(json.dumps(said))
    found = prefloop.judge_eval(str(tmp_path / "*.jsonl"), verdicts=[tmp_path / "said.json"],
                                by=["file"], out=tmp_path / "out")  # fmt: skip
    [by_file] = found.as_dict()["groups"]
    assert [(Path(one["group"]).name, one["pairs"]) for one in by_file["groups"]] == [
        ("x.jsonl", 4), ("y.jsonl", 4),
    ]  # fmt: skip


def test_a_column_that_is_not_there(files: tuple[str, str], tmp_path: Path) -> None:
    gold, verdicts = files
    said: dict[str, Any] = {"verdicts": [verdicts], "out": tmp_path / "out"}
    with pytest.raises(InputError, match=r"^--by levels: .*gold\.jsonl has no such column .*level"):
        prefloop.judge_eval(gold, by=["levels"], **said)


def test_too_many_groups(tmp_path: Path) -> None:
    rows = [{**ROWS[0], "prompt": f"p{i}", "id": i} for i in range(101)]
    (tmp_path / "g.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "v.jsonl").write_text(json.dumps({"row": 1, "verdict": 1}))
    with pytest.raises(InputError, match="--by id: 101 groups, and at most 100"):
        prefloop.judge_eval(
            tmp_path / "g.jsonl", verdicts=[tmp_path / "v.jsonl"], by="id", out=tmp_path / "out"
        )
