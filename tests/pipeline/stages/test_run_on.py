"""Answers that do not end are noticed at the first block."""

from __future__ import annotations

import pyarrow as pa
import pytest

from prefloop.pipeline.stages.run_on import run_on


def candidates(texts: list[str], reason: str = "stop", origin: str = "sampled") -> pa.Table:
    return pa.table(
        {
            "text": texts,
            "finish_reason": [reason] * len(texts),
            "origin": [origin] * len(texts),
        }
    )


@pytest.mark.parametrize(
    "text",
    [
        "Four.<|im_end|>\n<|im_start|>user\nAnd?",
        "Four.\nuser\nAnd 3 + 3?\nassistant\nSix.",
        "Four.\n\nHuman: And?",
        "Four.\n### Instruction: write",
        "Four.<start_of_turn>user",
        "Four. [/INST] [INST] And?",
    ],
)
def test_invented_turns(text: str) -> None:
    said = run_on(candidates([text, text, "Four.", "Four."]))
    assert said is not None
    assert "2 of the first 4 answers (50%) run on" in said
    assert "\n" not in said


def test_all_cut() -> None:
    said = run_on(candidates(["a", "b", "c", "d"], "length"))
    assert said is not None
    assert "all of the first 4 answers were cut" in said


@pytest.mark.parametrize(
    "table",
    [
        candidates(["Four."] * 8),
        candidates(["a"] * 3, "length"),
        candidates(["a"] * 8, "length", "reference"),
        candidates(["A user is an assistant: no more.", "User: a word", "The human\nrace", "x"]),
        pa.concat_tables([candidates(["a"] * 7, "length"), candidates(["b"])]),
    ],
)
def test_all_is_well(table: pa.Table) -> None:
    assert run_on(table) is None
