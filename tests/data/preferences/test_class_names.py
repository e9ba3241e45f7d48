"""Labels that `datasets` stores as numbers of classes say what the names of the classes say."""

from __future__ import annotations

import logging
from pathlib import Path

import datasets
import pyarrow as pa
import pytest

from prefloop.data.config import PromptSource
from prefloop.data.errors import InputError
from prefloop.data.preferences import parse_columns, read_preferences
from prefloop.data.preferences.given import read_answer_sets
from prefloop.data.preferences.gold import read_gold
from prefloop.data.quarantine import BadRow
from prefloop.data.sources.in_memory import keep_as_file
from prefloop.training.errors import TrainingError
from prefloop.training.inputs.rows import Dropped, answer_rows


def compared(names: list[str], label: str = "label", numbers: list[int] | None = None) -> object:
    numbers = list(range(len(names))) if numbers is None else numbers
    rows = {
        "prompt": [f"q{number}" for number in range(len(numbers))],
        "response_a": ["A"] * len(numbers),
        "response_b": ["B"] * len(numbers),
        label: numbers,
    }
    features = datasets.Features(
        {
            **dict.fromkeys(("prompt", "response_a", "response_b"), datasets.Value("string")),
            label: datasets.ClassLabel(names=names),
        }
    )
    return datasets.Dataset.from_dict(rows, features=features)


def written(dataset: object, path: Path) -> Path:
    if path.suffix == ".parquet":
        dataset.to_parquet(str(path))  # type: ignore[attr-defined]
    else:
        dataset.save_to_disk(str(path))  # type: ignore[attr-defined]
    return path


@pytest.mark.parametrize("name", ["saved", "data.parquet"])
@pytest.mark.parametrize("names", [["a", "b", "tie"], ["tie", "a", "b"], ["model_b", "tie", "A"]])
def test_a_class_says_what_its_name_says(tmp_path: Path, name: str, names: list[str]) -> None:
    source = PromptSource(path=str(written(compared(names), tmp_path / name)))
    place_a = next(place for place, one in enumerate(names) if one.lower() == "a")
    tie = names.index("tie")
    chosen = {
        row["prompt"][-1]["content"]: row["chosen"]
        for batch in read_preferences(source)
        for row in batch.pairs.to_pylist()
    }
    [place_b] = {0, 1, 2} - {place_a, tie}
    assert chosen == {f"q{place_a}": "A", f"q{place_b}": "B"}
    gold = {
        pair.messages[-1]["content"]: pair.gold if pair.a == "A" or pair.gold == "tie" else "ab"
        for pair in read_gold(source)[0]
    }
    assert gold[f"q{tie}"] == "tie"
    ratings = {
        one.prompt[-1]["content"]: [answer.rating for answer in one.answers]
        for one in read_answer_sets(source)
        if not isinstance(one, BadRow)
    }
    assert ratings == {f"q{place_a}": [1, 0], f"q{place_b}": [0, 1], f"q{tie}": [0.5, 0.5]}


def test_a_number_without_a_class_is_no_label(tmp_path: Path) -> None:
    path = written(compared(["b", "a"], numbers=[0, 1, -1]), tmp_path / "data.parquet")
    [batch] = read_preferences(PromptSource(path=str(path)))
    assert batch.pairs["chosen"].to_pylist() == ["B", "A"]
    assert batch.bad["reason"].to_pylist() == ["null"]


def test_names_that_say_nothing_are_shown(tmp_path: Path) -> None:
    path = written(compared(["left", "right"], label="who"), tmp_path / "data.parquet")
    columns = parse_columns("prompt=prompt,a=response_a,b=response_b,label=who")
    with pytest.raises(InputError, match="the label 'left' is none of"):
        read_gold(PromptSource(path=str(path)), columns)


def test_tables_in_memory_with_other_names_are_other_files(tmp_path: Path) -> None:
    paths = [keep_as_file(compared(names), tmp_path, "data") for names in (["a", "b"], ["b", "a"])]
    first = [
        next(read_preferences(PromptSource(path=path))).pairs["chosen"].to_pylist()
        for path in paths
    ]
    assert first == [["A", "B"], ["B", "A"]]
    plain = pa.table({"prompt": ["q"], "label": [1]})
    assert keep_as_file(plain, tmp_path, "data") == keep_as_file(plain, tmp_path, "data")


def test_training_reads_the_names_too(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    features = datasets.Features(
        {
            "prompt": datasets.Value("string"),
            "completion": datasets.Value("string"),
            "label": datasets.ClassLabel(names=["true", "false"]),
        }
    )
    rows = {"prompt": ["q", "q"], "completion": ["good", "bad"], "label": [0, 1]}
    path = tmp_path / "single.parquet"
    datasets.Dataset.from_dict(rows, features=features).to_parquet(str(path))
    assert [(one.text, one.good) for one in answer_rows([path], Dropped())] == [
        ("good", True),
        ("bad", False),
    ]
    features["label"] = datasets.ClassLabel(names=["fine", "awful"])
    datasets.Dataset.from_dict(rows, features=features).to_parquet(str(path))
    with pytest.raises(TrainingError, match="label is 'fine'"):
        list(answer_rows([path], Dropped()))
