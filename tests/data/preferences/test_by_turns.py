"""LMSYS's comparisons: lists of texts, one a turn, and three columns that say who won."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from prefloop.data.config import PromptSource
from prefloop.data.preferences import read_preferences
from prefloop.data.preferences.given import read_answer_sets
from prefloop.data.preferences.gold import read_gold

Row = dict[str, Any]


def row(asked: list[Any], first: list[Any], second: list[Any], winner: str, **more: Any) -> Row:
    names = ("winner_model_a", "winner_model_b", "winner_tie")
    return {
        "id": 1,
        "model_a": "m",
        "model_b": "n",
        "prompt": json.dumps(asked),
        "response_a": json.dumps(first),
        "response_b": json.dumps(second),
        **{name: int(name == winner) for name in names},
        **more,
    }


def read(folder: Path, rows: list[Row], form: str = "jsonl") -> tuple[list[Row], list[str]]:
    path = folder / f"data.{form}"
    if form == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    else:
        path.write_text("".join(json.dumps(one) + "\n" for one in rows))
    pairs: list[Row] = []
    bad: list[str] = []
    for batch in read_preferences(PromptSource(path=str(path))):
        pairs += batch.pairs.to_pylist()
        bad += batch.bad["reason"].to_pylist()
    return pairs, bad


@pytest.mark.parametrize("form", ["jsonl", "parquet"])
def test_the_winner_is_chosen_and_the_texts_are_turns(tmp_path: Path, form: str) -> None:
    rows = [
        row(["Hi?"], ["Yes."], ["No."], "winner_model_b"),
        row(["Hi?", "And?"], ["Same.", "One."], ["Same.", "Two."], "winner_model_a"),
        row(["Hi?"], ["Yes."], ["No."], "winner_tie"),
    ]
    pairs, bad = read(tmp_path, rows, form)
    assert [(one["chosen"], one["rejected"]) for one in pairs] == [
        ("No.", "Yes."),
        ("One.", "Two."),
    ]
    assert [[turn["content"] for turn in one["prompt"]] for one in pairs] == [
        ["Hi?"],
        ["Hi?", "Same.", "And?"],
    ]
    assert bad == ["tie"]
    source = PromptSource(path=str(tmp_path / f"data.{form}"))
    assert [pair.gold == "tie" for pair in read_gold(source)[0]] == [False, False]
    sets = [one for one in read_answer_sets(source) if hasattr(one, "answers")]
    assert [[answer.model for answer in one.answers] for one in sets] == [["m", "n"]] * 3
    assert [[answer.rating for answer in one.answers] for one in sets] == [
        [0, 1],
        [1, 0],
        [0.5, 0.5],
    ]


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"prompt": '["a", "b"]'}, "bad_messages"),
        ({"response_a": '["x", "y"]', "response_b": '["z", "y"]', "prompt": '["a", "b"]'},
         "prompts_differ"),
        ({"response_a": "[null]"}, "empty_answer"),
        ({"response_a": "Yes."}, "written_turns"),
        ({"response_a": '["\\ud83d"]'}, "not_utf8"),
        ({"response_a": '[" "]'}, "empty_answer"),
        ({"winner_model_b": 1}, "bad_label"),
        ({"winner_model_a": 0}, "bad_label"),
        ({"winner_model_a": None}, "null"),
        ({"winner_model_a": 0.5, "winner_model_b": 0.5}, "bad_label"),
    ],
)  # fmt: skip
def test_what_cannot_be_told_is_refused(tmp_path: Path, changed: Row, reason: str) -> None:
    good = row(["a"], ["x"], ["z"], "winner_model_a")
    pairs, bad = read(tmp_path, [good, {**good, **changed}])
    assert (len(pairs), bad) == (1, [reason])
