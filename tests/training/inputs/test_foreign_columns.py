"""Columns beside prompt and answers in files that others wrote: turns before the prompt, ties, and
what training does not read."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from prefloop.pipeline.policies.train_alone import Method, TrainOptions, find_sources, train_model
from prefloop.training.inputs.rows import Dropped, answer_rows, pair_rows

Row = dict[str, Any]
PAIR = {"prompt": "q", "chosen": "x", "rejected": "y"}


def parquet(folder: Path, *rows: Row) -> Path:
    path = folder / "data.parquet"
    pq.write_table(pa.Table.from_pylist(list(rows)), path)
    return path


def say(role: str, content: str) -> Row:
    return {"role": role, "content": content}


def test_the_turns_before_a_prompt_are_trained_on(tmp_path: Path) -> None:
    earlier = [say("user", "a"), say("assistant", "b")]
    file = parquet(
        tmp_path,
        PAIR | {"history": [["a", "b"]], "system": "S"},
        PAIR | {"history": [], "system": None},
        PAIR | {"history": [["a"]], "system": None},
    )
    dropped = Dropped()

    prompts = [row.prompt for row in pair_rows([file], dropped)]

    assert prompts == [[say("system", "S"), *earlier, say("user", "q")], [say("user", "q")]]
    assert dropped.as_dict() == {"bad_messages": 1}
    assert "row 3: history" in dropped.first["bad_messages"]


def test_the_turns_before_a_labelled_answer_are_trained_on(tmp_path: Path) -> None:
    own = [say("system", "own"), say("user", "q")]
    file = parquet(
        tmp_path, {"prompt": own, "completion": "x", "label": True, "history": [["a", "b"]]}
    )

    (row,) = answer_rows([file], Dropped())

    assert row.prompt == [own[0], say("user", "a"), say("assistant", "b"), own[1]]


def test_a_tie_is_no_pair_to_train_on(tmp_path: Path) -> None:
    file = parquet(
        tmp_path, PAIR | {"status": "tie"}, PAIR | {"status": "swapped"}, PAIR | {"status": None}
    )
    dropped = Dropped()

    assert len(list(pair_rows([file], dropped))) == 2
    assert dropped.as_dict() == {"tie": 1}


def test_columns_that_training_does_not_read_are_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = parquet(
        tmp_path,
        PAIR | {"context": None, "images": ["a.png"], "instruction": "q", "history": [["a", "b"]]},
        PAIR | {"context": "Text.", "images": [], "instruction": "q", "history": None},
    )
    options = TrainOptions(Method.dpo, "embedded:policy", tmp_path / "out", tracking=("nobody",))

    with caplog.at_level(logging.WARNING), pytest.raises(Exception, match="nobody"):
        train_model(find_sources([file]), options)

    assert len(caplog.messages) == 2
    assert f"{file}: the column 'context' holds something in 1 rows (first {file}:2)" in caplog.text
    assert "--columns prompt=prompt+context (prefloop audit --fix" in caplog.text
    assert "the column 'images' holds something in 1 rows" in caplog.text
