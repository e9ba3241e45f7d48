"""Triples in the form of other projects."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

import prefloop
from prefloop.data.errors import InputError
from prefloop.data.schemas import MESSAGES
from prefloop.pipeline.export.row_formats import ROW_FORMATS

TOOLS = [{"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}]
CALLED = [
    {"role": "user", "content": "Rain in Rome?"},
    {
        "role": "assistant",
        "content": "",
        "tool_calls": [
            {"type": "function", "function": {"name": "weather", "arguments": {"city": "Rome"}}}
        ],
    },
    {"role": "tool", "content": "no"},
]


def turn(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


PLAIN = {
    "prompt": [turn("user", "Name a colour.\n“Quoted”, ünïcode")],
    "chosen": [turn("assistant", "Blue,\nlike the sky.")],
    "rejected": [turn("assistant", "No.")],
    "prompt_id": "p1",
}
TALK = {
    "prompt": [
        turn("system", "Be brief."), turn("user", "Hello"), turn("assistant", "Hi."),
        turn("user", "And?"),
    ],
    "chosen": [turn("assistant", "All is well.")],
    "rejected": [turn("assistant", "<script>alert(1)</script>")],
    "prompt_id": "p2",
    "chosen_reasoning": "Be polite.",
}  # fmt: skip
WITH_TOOLS = {
    "prompt": [turn("user", "Rain in Rome?"), turn("assistant", "{}"), turn("tool", "no")],
    "chosen": [turn("assistant", "It is dry.")],
    "rejected": [turn("assistant", "It rains.")],
    "prompt_id": "p3",
    "tools": json.dumps(TOOLS),
    "prompt_turns": json.dumps(CALLED),
}
ENDS_WITH_AN_ANSWER = {
    **PLAIN,
    "prompt": [turn("user", "Go"), turn("assistant", "So")],
    "prompt_id": "p4",
}


def dataset(folder: Path, rows: list[dict[str, Any]], split: str = "train") -> Path:
    columns = {
        name: pa.array([row.get(name) for row in rows], MESSAGES)
        for name in ("prompt", "chosen", "rejected")
    } | {
        name: pa.array([row.get(name) for row in rows], pa.string())
        for name in ("prompt_id", "tools", "prompt_turns", "chosen_reasoning")
    }
    (folder / "data").mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), folder / "data" / f"{split}-00000.parquet")
    return folder


def read(path: Path) -> list[Any]:
    text = path.read_text(encoding="utf-8")
    return json.loads(text) if path.suffix == ".json" else [*map(json.loads, text.splitlines())]


@pytest.mark.parametrize("form", sorted(set(ROW_FORMATS) - {"label-studio"}))
def test_what_is_written_is_read_as_the_same_pairs(form: str, tmp_path: Path) -> None:
    """By our own reader of foreign data, which knows each of the forms."""
    source = dataset(tmp_path / "source", [PLAIN, TALK])
    found = prefloop.export(source, to=form, out=tmp_path / "out")
    assert (found.rows, found.left_out) == ({"train.jsonl": 2}, {})
    assert found.without_thoughts == 1
    fixed = tmp_path / "fixed"
    prefloop.audit(tmp_path / "out" / "train.jsonl", fix=fixed)
    [file] = (fixed / "data").glob("*.parquet")
    for row, given in zip(pq.read_table(file).to_pylist(), (PLAIN, TALK), strict=True):
        assert row["chosen"] == given["chosen"]
        assert row["rejected"] == given["rejected"]
        assert row["prompt"] == given["prompt"]


def test_llamafactory_is_told_of_its_files(tmp_path: Path) -> None:
    source = dataset(tmp_path / "source", [PLAIN, WITH_TOOLS])
    dataset(source, [TALK], split="test")
    prefloop.export(source, to="llamafactory", out=tmp_path / "out")
    info = json.loads((tmp_path / "out" / "dataset_info.json").read_text(encoding="utf-8"))
    assert {name: entry["file_name"] for name, entry in info.items()} == {
        "train": "train.jsonl", "test": "test.jsonl",
    }  # fmt: skip
    assert info["train"]["ranking"] is True
    rows = read(tmp_path / "out" / "train.jsonl")
    assert set(info["train"]["columns"].values()) - {"tools"} <= rows[0].keys()
    speakers = [said["from"] for said in rows[1]["conversations"]]
    assert speakers == ["human", "function_call", "observation"]
    assert json.loads(rows[1]["conversations"][1]["value"]) == {
        "name": "weather", "arguments": {"city": "Rome"},
    }  # fmt: skip
    assert json.loads(rows[1]["tools"]) == TOOLS


def test_alpaca_has_earlier_turns_as_history(tmp_path: Path) -> None:
    prefloop.export(dataset(tmp_path / "s", [TALK]), to="alpaca", out=tmp_path / "out")
    [row] = read(tmp_path / "out" / "train.jsonl")
    assert (row["system"], row["history"], row["instruction"]) == (
        "Be brief.", [["Hello", "Hi."]], "And?",
    )  # fmt: skip


def test_openai_is_given_tools_and_calls(tmp_path: Path) -> None:
    prefloop.export(dataset(tmp_path / "s", [WITH_TOOLS]), to="openai", out=tmp_path / "out")
    [row] = read(tmp_path / "out" / "train.jsonl")
    assert row["input"]["tools"] == TOOLS
    call = row["input"]["messages"][1]["tool_calls"][0]["function"]
    assert isinstance(call["arguments"], str)
    assert json.loads(call["arguments"]) == {"city": "Rome"}
    assert row["preferred_output"] == WITH_TOOLS["chosen"]


def test_files_beside_are_what_they_look_like(tmp_path: Path) -> None:
    source = dataset(tmp_path / "s", [PLAIN])
    dataset(source, [TALK], split="test")
    prefloop.export(source, to="axolotl", out=tmp_path / "axolotl")
    config = yaml.safe_load((tmp_path / "axolotl" / "dataset.yaml").read_text(encoding="utf-8"))
    assert config["datasets"][0]["path"] == "train.jsonl"
    assert config["test_datasets"][0]["path"] == "test.jsonl"
    prefloop.export(source, to="nemo-rl", out=tmp_path / "nemo")
    data = yaml.safe_load((tmp_path / "nemo" / "data.yaml").read_text(encoding="utf-8"))["data"]
    assert data == {
        "train": {"data_path": "train.jsonl"}, "validation": {"data_path": "test.jsonl"},
        "default": {"dataset_name": "PreferenceDataset"},
    }  # fmt: skip


def test_label_studio_does_not_show_what_was_chosen(tmp_path: Path) -> None:
    rows = [{**PLAIN, "prompt_id": f"p{index}"} for index in range(40)]
    source = dataset(tmp_path / "s", rows)
    found = prefloop.export(source, to="label-studio", out=tmp_path / "out", seed=3)
    tasks = read(tmp_path / "out" / "train.json")
    assert found.rows == {"train.json": 40} == {"train.json": len(tasks)}
    sides = [task["meta"]["chosen"] for task in tasks]
    assert 8 < sides.count("left") < 32
    for task in tasks:
        assert task["data"][task["meta"]["chosen"]] == "Blue,\nlike the sky."
        assert task["data"].keys() == {"prompt", "left", "right"}
    page = ElementTree.parse(tmp_path / "out" / "labelling.xml")
    shown = {node.get("value") for node in page.iter("Text")}
    assert shown == {"$prompt", "$left", "$right"}
    again = prefloop.export(source, to="label-studio", out=tmp_path / "again", seed=3)
    assert read(again.out / "train.json") == tasks


def test_rows_that_a_form_cannot_say_are_kept_beside(tmp_path: Path) -> None:
    source = dataset(tmp_path / "s", [PLAIN, WITH_TOOLS, ENDS_WITH_AN_ANSWER])
    found = prefloop.export(source, to="alpaca", out=tmp_path / "out")
    assert found.rows == {"train.jsonl": 1}
    assert sum(found.left_out.values()) == 2
    lost = read(tmp_path / "out" / "left_out.jsonl")
    assert [row["row"] for row in lost] == [2, 3]
    assert "tools" in lost[0]["reason"]
    assert lost[0]["chosen"] == WITH_TOOLS["chosen"]


@pytest.mark.parametrize(
    ("rows", "to", "message"),
    [
        ([PLAIN], "unsloth", "write one of llamafactory"),
        ([WITH_TOOLS], "alpaca", "no triple can be written for alpaca: 1 of them because of tools"),
    ],
)
def test_what_cannot_be_written_leaves_nothing(rows, to, message, tmp_path: Path) -> None:
    source = dataset(tmp_path / "s", rows)
    with pytest.raises(InputError, match=message):
        prefloop.export(source, to=to, out=tmp_path / "out")
    assert {path.name for path in tmp_path.iterdir()} == {"s"}


def test_no_prompt_is_in_the_files_of_both_splits(tmp_path: Path) -> None:
    """Two runs share the same prompts out by seeds of their own."""
    one = dataset(dataset(tmp_path / "one", [PLAIN]), [TALK], "test")
    other = dataset(dataset(tmp_path / "other", [TALK]), [PLAIN, ENDS_WITH_AN_ANSWER], "test")
    found = prefloop.export([one, other], to="nemo-rl", out=tmp_path / "out")
    assert found.rows == {"train.jsonl": 2, "test.jsonl": 1}
    assert found.left_out == {"its prompt is in the training split": 2}
    rows = {
        split: {json.dumps(row["context"]) for row in read(tmp_path / "out" / f"{split}.jsonl")}
        for split in ("train", "test")
    }
    assert not rows["train"] & rows["test"]
    assert len(read(tmp_path / "out" / "left_out.jsonl")) == 2


def test_a_folder_that_exists_is_left_alone(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is there already"):
        prefloop.export(dataset(tmp_path / "s", [PLAIN]), to="openai", out=tmp_path)


def test_files_that_hold_no_triples_are_told(tmp_path: Path) -> None:
    texts = tmp_path / "texts.parquet"
    pq.write_table(pa.table({"prompt": ["a"], "chosen": ["b"], "rejected": ["c"]}), texts)
    with pytest.raises(InputError, match="prefloop audit FILE --fix DIR"):
        prefloop.export(texts, to="openai", out=tmp_path / "out")
    broken = tmp_path / "broken.parquet"
    broken.write_bytes(b"no")
    with pytest.raises(InputError, match="no Parquet file of triples"):
        prefloop.export(broken, to="openai", out=tmp_path / "out")


@pytest.mark.parametrize("form", sorted(ROW_FORMATS))
def test_answers_stand_without_their_thoughts(form: str, tmp_path: Path) -> None:
    """Also where the dataset has them in the text, as a run writes them by default."""
    said = {"chosen": [turn("assistant", "<think>\nHm.\n</think>\n\nYes")],
            "rejected": [turn("assistant", "No <think>")], "chosen_reasoning": "Hm."}  # fmt: skip
    alone = {**PLAIN, **said, "prompt_id": "p9", "chosen": [turn("assistant", "<think>Hm")]}
    source = dataset(tmp_path / "source", [{**PLAIN, **said}, alone])
    found = prefloop.export(source, to=form, out=tmp_path / "out")
    assert found.without_thoughts == 1
    assert found.left_out == {"an answer is a thought alone, or holds no text": 1}
    [row] = read(next((tmp_path / "out").glob("train.json*")))
    text = json.dumps(row)
    assert "Yes" in text
    assert "No <think>" in text
    assert "Hm." not in text
