"""Folders of which some files are missing, or of which only one kind is read."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from prefloop.data.config import PromptSource
from prefloop.data.errors import InputError
from prefloop.data.preferences import read_preferences
from prefloop.data.preferences.given import read_answer_sets
from prefloop.pipeline.policies.train_alone import Method, find_sources

PAIR = {"prompt": "q", "chosen": "x", "rejected": "y"}


def saved(folder: Path, name: str) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist([PAIR]), path)
    else:
        path.write_text(json.dumps(PAIR) + "\n")
    return path


def rows(path: Path | str, split: str = "train") -> int:
    source = PromptSource(path=str(path), split=split)
    given = sum(1 for _ in read_answer_sets(source))
    assert given == sum(batch.rows for batch in read_preferences(source))
    return given


@pytest.mark.parametrize(
    "name",
    ["data/train-{}-of-00003.parquet", "train-{}-of-00003.jsonl", "a/train-{}-of-00003.parquet"],
)
def test_a_shard_that_is_missing_is_named(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "set"
    for number in ("00000", "00002"):
        saved(folder, name.format(number))
    saved(folder, name.replace("train", "test").format("00000"))

    for read in (read_preferences, read_answer_sets):
        with pytest.raises(InputError, match=r"set: 2 of the 3 files train-\*-of-00003.* 00001 is"):
            list(read(PromptSource(path=str(folder))))
    named = folder / name.format("*")
    assert rows(named) == 2

    saved(folder, name.format("00001"))
    assert rows(folder) == 3


def test_training_takes_no_part_of_a_split(tmp_path: Path) -> None:
    saved(tmp_path, "data/train-00001-of-00002.parquet")
    for split in ("train", "test"):
        saved(tmp_path, f"whole/data/{split}-00000-of-00001.parquet")

    with pytest.raises(InputError, match=r"1 of the 2 files train-.* 00000 is not"):
        find_sources([tmp_path], method=Method.dpo)
    found = find_sources([tmp_path / "whole"], method=Method.dpo)
    assert len(found.train) == len(found.test) == 1


def test_files_of_a_kind_that_is_not_read_are_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    saved(tmp_path, "one.jsonl")
    saved(tmp_path, ".hidden/old.parquet")
    (tmp_path / "LICENSE.txt").write_text("text")
    with caplog.at_level(logging.WARNING):
        assert rows(tmp_path) == 1
        assert not caplog.messages
        saved(tmp_path, "two.parquet")
        assert rows(tmp_path) == 1
    assert f"{tmp_path}: holds files of several kinds (jsonl, parquet)" in caplog.text
