"""The dataset card says where prompts and answers come from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from prefloop.pipeline.report.card import card_text
from tests.helpers.runs import small_config
from tests.helpers.synthetic_run import write_run


def candidates_line(tmp_path: Path, **changes: Any) -> str:
    card = card_text(small_config(**changes), write_run(tmp_path / "run", trained=False))
    start = card.index("- **Candidates**")
    return " ".join(card[start : card.index("- **Labelers**")].split())


def test_every_source_of_prompts_is_named(tmp_path: Path) -> None:
    prompts = {"train": [{"path": "embedded:prompts"}, {"path": "mine.jsonl", "weight": 2.0}]}
    card = card_text(small_config(prompts=prompts), write_run(tmp_path / "run", trained=False))
    assert "- **Prompts** from `embedded:prompts`, `mine.jsonl`.\n- **Candidates**" in card


def test_each_member_of_a_pool_is_described_as_it_was_asked(tmp_path: Path) -> None:
    pool = [
        {"name": "cold", "n": 2, "temperature": 0.0},
        {"name": "large", "model": "org/large", "n": 3, "top_p": 0.9, "top_k": 20},
    ]
    assert candidates_line(tmp_path, sample={"temperature": 0.7, "pool": pool}).startswith(
        "- **Candidates**: 5 samples a prompt, from "
        "`embedded:policy` (2 of them) at temperature 0.0, top-p 1.0, "
        "`org/large` (3 of them) at temperature 0.7, top-p 0.9, top-k 20"
    )


@pytest.mark.parametrize(
    ("sample", "said"),
    [
        ({"n": 3}, "3 samples a prompt, from `embedded:policy` at temperature 1.0, top-p 1.0"),
        (
            {"n": 4, "pool": [{"name": "a", "weight": 3}, {"name": "b"}]},
            "4 samples a prompt, from `embedded:policy` (3 of them on average) at temperature 1.0,",
        ),
    ],
)
def test_answers_of_one_policy_and_of_a_drawn_one(
    sample: dict[str, Any], said: str, tmp_path: Path
) -> None:
    assert said in candidates_line(tmp_path, sample=sample)
