"""What others' tables hold beyond two answers and one label: columns in the names of folders, a
third answer, a second label, an answer that stands beside a whole conversation."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from prefloop.data.config import Columns, PromptsConfig, PromptSource
from prefloop.data.errors import InputError
from prefloop.data.preferences import parse_columns, read_preferences
from prefloop.data.preferences.answer_sets import AnswerSet
from prefloop.data.preferences.given import read_answer_sets
from prefloop.data.preferences.gold import read_gold
from prefloop.data.preferences.layouts import PreferenceColumns
from prefloop.data.prompts.load import load_prompts
from prefloop.data.quarantine import BadRow

Row = dict[str, Any]
PAIR = {"prompt": "q", "response_1": "x", "response_2": "y"}


def say(role: str, content: str) -> Row:
    return {"role": role, "content": content}


def written(folder: Path, rows: list[Row], form: str) -> Path:
    path = folder / f"data.{form}"
    if form == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def audited(path: Path | str, own: PreferenceColumns | None = None) -> tuple[list[Row], list[Row]]:
    batches = list(read_preferences(PromptSource(path=str(path)), columns=own))
    pairs = [row for batch in batches for row in batch.pairs.to_pylist()]
    return pairs, [row for batch in batches for row in batch.bad.to_pylist()]


def given(path: Path | str) -> tuple[list[AnswerSet], list[BadRow]]:
    found = list(read_answer_sets(PromptSource(path=str(path))))
    sets = [one for one in found if isinstance(one, AnswerSet)]
    return sets, [one for one in found if isinstance(one, BadRow)]


def partitioned(folder: Path, rows: list[Row], *columns: str) -> Path:
    path = folder / "table"
    pq.write_to_dataset(pa.Table.from_pylist(rows), path, partition_cols=list(columns))
    return path


@pytest.mark.parametrize("pattern", ["", "/**/*.parquet", "/*=*/*.parquet"])
def test_a_label_in_the_name_of_a_folder_is_a_column(tmp_path: Path, pattern: str) -> None:
    rows = [PAIR | {"label": "2"}, PAIR | {"prompt": "q1", "label": "1"}]
    path = f"{partitioned(tmp_path, rows, 'label')}{pattern}"

    pairs, bad = audited(path)
    sets, _ = given(path)
    gold, _ = read_gold(PromptSource(path=path))

    assert not bad
    assert {(one["prompt"][0]["content"], one["chosen"]) for one in pairs} == {
        ("q", "y"), ("q1", "x"),
    }  # fmt: skip
    assert {(one.prompt[0]["content"], one.answers[0].rating) for one in sets} == {
        ("q", 0.0), ("q1", 1.0),
    }  # fmt: skip
    preferred = {(one.messages[0]["content"], one.a if one.gold == "a" else one.b) for one in gold}
    assert preferred == {("q", "y"), ("q1", "x")}


def test_a_system_prompt_in_the_name_of_a_folder_is_the_prompts(tmp_path: Path) -> None:
    rows = [
        {"system": "50 % / short", "topic": None, "prompt": "q", "chosen": "x", "rejected": "y"}
    ]
    table = pa.Table.from_pylist(rows).cast(
        pa.schema([(name, pa.string()) for name in rows[0]])
    )  # a column of nulls alone has no type that Arrow writes into a name
    path = tmp_path / "table"
    pq.write_to_dataset(table, path, partition_cols=["system", "topic"])

    pairs, _ = audited(path)
    prompts = load_prompts(
        PromptsConfig(
            train=PromptSource(path=str(path), columns=Columns(system="system")), heldout_share=0
        ),
        seed=0,
    )

    asked = [say("system", "50 % / short"), say("user", "q")]
    assert pairs[0]["prompt"] == asked
    assert prompts.train["messages"].to_pylist() == [asked]
    assert json.loads(prompts.train["metadata"][0].as_py())["topic"] is None


def test_a_column_of_the_file_wins_over_the_name_of_its_folder(tmp_path: Path) -> None:
    folder = tmp_path / "table" / "label=1"
    folder.mkdir(parents=True)
    written(folder, [PAIR | {"label": "2"}], "parquet")

    pairs, _ = audited(tmp_path / "table")

    assert [one["chosen"] for one in pairs] == ["y"]


def test_folders_of_columns_with_files_of_splits_are_refused(tmp_path: Path) -> None:
    for split in ("train", "test"):
        folder = tmp_path / "table" / "label=1"
        folder.mkdir(parents=True, exist_ok=True)
        written(folder, [PAIR], "parquet").rename(folder / f"{split}-0.parquet")

    with pytest.raises(InputError, match=r"files a split \(label=1/test-0.parquet\)"):
        audited(tmp_path / "table")
    pairs, _ = audited(f"{tmp_path}/table/**/train*")

    assert [one["chosen"] for one in pairs] == ["x"]


@pytest.mark.parametrize("form", ["jsonl", "parquet"])
@pytest.mark.parametrize(
    "more", [{"label": 1}, {"score_1": 1, "score_2": 2, "score_3": 9}, {"scores": [False, True]}]
)
def test_a_third_answer_beside_two_is_not_left_out_silently(
    tmp_path: Path, form: str, more: Row
) -> None:
    rows = [PAIR | {"response_3": "z"} | more, PAIR | {"prompt": "p", "response_3": None} | more]
    path = written(tmp_path, rows, form)

    sets, bad = given(path)

    assert [one.prompt[0]["content"] for one in sets] == ["p"]
    assert [(one.row, one.field, one.reason) for one in bad] == [(1, "response_3", "third_answer")]
    if "scores" in more:
        return
    pairs, bad_pairs = audited(path)
    assert [one["prompt"][0]["content"] for one in pairs] == ["p"]
    assert [(one["row"], one["reason"]) for one in bad_pairs] == [(1, "third_answer")]


def test_two_of_three_answers_may_be_named(tmp_path: Path) -> None:
    path = written(tmp_path, [PAIR | {"response_3": "z", "label": "2"}], "jsonl")

    pairs, _ = audited(path, parse_columns("prompt=prompt,a=response_2,b=response_3,label=label"))

    assert [(one["chosen"], one["rejected"]) for one in pairs] == [("z", "y")]


@pytest.mark.parametrize("form", ["jsonl", "parquet"])
def test_two_labels_that_say_different_things_are_told(tmp_path: Path, form: str) -> None:
    rows = [
        PAIR | {"preference": "1", "gold": "B", "model_1": "m", "model_2": "n"},
        PAIR | {"prompt": "p", "preference": "1", "gold": "A", "model_1": "m", "model_2": "n"},
        PAIR | {"prompt": "r", "preference": "2", "gold": None, "model_1": "m", "model_2": "n"},
        PAIR | {"prompt": "s", "preference": "2", "gold": "m", "model_1": "m", "model_2": "n"},
    ]
    path = written(tmp_path, rows, form)

    pairs, bad = audited(path)
    _, refused = read_gold(PromptSource(path=str(path)))
    named, _ = audited(path, parse_columns("prompt=prompt,a=response_1,b=response_2,label=gold"))

    assert [(one["row"], one["chosen"]) for one in pairs] == [(2, "x"), (3, "y")]
    assert [(one["row"], one["field"], one["reason"]) for one in bad] == [
        (1, "preference", "labels_differ"), (4, "preference", "labels_differ"),
    ]  # fmt: skip
    assert [(one.row, one.reason) for one in refused] == [
        (1, "labels_differ"),
        (4, "labels_differ"),
    ]
    assert (named[0]["row"], named[0]["chosen"]) == (1, "y")


@pytest.mark.parametrize("form", ["jsonl", "parquet"])
@pytest.mark.parametrize(
    "row",
    [
        {"messages": [say("system", "S"), say("user", "a"), say("assistant", "b"),
                      say("user", "c"), say("assistant", "good")], "rejected_response": "bad"},
        {"messages": [say("system", "S"), say("user", "a"), say("assistant", "b"),
                      say("user", "c"), say("assistant", "good")],
         "rejected_messages": [say("system", "S"), say("user", "a"), say("assistant", "b"),
                               say("user", "c"), say("assistant", "bad")]},
        {"system": "S", "query": "c", "response": "good", "rejected_response": "bad",
         "history": [["a", "b"]]},
    ],
)  # fmt: skip
def test_ms_swift_has_the_rejected_answer_beside_a_conversation(
    tmp_path: Path, form: str, row: Row
) -> None:
    path = written(tmp_path, [row], form)

    pairs, bad = audited(path)
    sets, _ = given(path)

    asked = [say("system", "S"), say("user", "a"), say("assistant", "b"), say("user", "c")]
    assert not bad
    assert [(one["prompt"], one["chosen"], one["rejected"]) for one in pairs] == [
        (asked, "good", "bad")
    ]
    assert [(one.prompt, one.answers[0].text, one.answers[0].rating) for one in sets] == [
        (asked, "good", 1.0)
    ]
    assert [(one.text, one.rating) for one in sets[0].answers[1:]] == [("bad", 0.0)]


@pytest.mark.parametrize("form", ["jsonl", "parquet"])
def test_a_rank_says_that_lower_is_better(tmp_path: Path, form: str) -> None:
    one = {"prompt": "q", "response": "x", "rank": 2}
    singles = written(tmp_path, [one, one | {"response": "y", "rank": 1}], form)
    listed = tmp_path / "listed"
    listed.mkdir()
    lists = written(listed, [{"prompt": "q", "responses": ["x", "y"], "rank": [2, 1]}], form)
    scored = tmp_path / "scored"
    scored.mkdir()
    scores = written(
        scored, [one | {"score": 9.0}, one | {"response": "y", "rank": 1, "score": 3.0}], form
    )

    for path in (singles, lists):
        pairs, _ = audited(path)
        (found,), _ = given(path)
        assert [(each["chosen"], each["rejected"]) for each in pairs] == [("y", "x")]
        assert [(each.text, each.rating) for each in found.answers] == [("x", -2.0), ("y", -1.0)]
        assert not found.absolute
    assert audited(scores)[0][0]["chosen"] == "x"


def test_answers_of_rows_with_other_tools_are_answers_to_other_prompts(tmp_path: Path) -> None:
    def tools(name: str) -> str:
        return json.dumps([{"type": "function", "function": {"name": name}}])

    one = {"prompt": "q", "response": "x", "score": 5, "tools": tools("search")}
    rows = [
        one,
        one | {"response": "y", "score": 1, "tools": tools("weather")},
        one | {"response": "z", "score": 2},
    ]
    path = written(tmp_path, rows, "jsonl")

    pairs, bad = audited(path)
    sets, _ = given(path)

    assert [(each["chosen"], each["rejected"]) for each in pairs] == [("x", "z")]
    assert [(each["row"], each["reason"]) for each in bad] == [(2, "single_answer")]
    assert [[each.text for each in found.answers] for found in sets] == [["x", "z"], ["y"]]


@pytest.mark.parametrize(
    ("ratings", "expected", "left_out"),
    [
        ([1, 5, 3], [("x", 1.0), ("y", 0.0)], 1),
        ([5, 1, 3], [("x", 5.0), ("y", 1.0), ("z", 3.0)], 0),
    ],
)
def test_a_list_that_rates_rejected_above_chosen_does_not_turn_the_pair(
    tmp_path: Path, ratings: list[int], expected: list[tuple[str, float]], left_out: int
) -> None:
    row = {"prompt": "q", "generations": ["x", "y", "z"], "ratings": ratings}
    path = written(tmp_path, [row | {"chosen": "x", "rejected": "y"}], "jsonl")

    pairs, _ = audited(path)
    (found,), _ = given(path)

    assert [(one["chosen"], one["rejected"]) for one in pairs] == [("x", "y")]
    assert [(one.text, one.rating) for one in found.answers] == expected
    assert found.left_out == left_out
