"""What people are asked about single criteria, and what becomes of it, without a server."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from prefloop.data.prompts.criteria import criteria_of
from prefloop.data.schemas import VOTE
from prefloop.data.shards import write_shard
from prefloop.labelers.config import LabelConfig
from prefloop.pipeline.review.by_criterion.criterion_questions import (
    MOST_ASKED,
    AskedCriteria,
    criteria_to_ask,
    criterion_questions,
    said_of_criteria,
)
from prefloop.pipeline.review.errors import ReviewError
from prefloop.pipeline.review.folder import RESPONSE, ReviewFolder
from prefloop.pipeline.review.guidelines import guidelines
from prefloop.pipeline.review.responses import votes_of

CRITERIA = criteria_of(
    [
        {"text": "It is right.", "choices": ["no", "in part", "fully"], "weight": 2},
        {"text": "It rambles.", "weight": -1},
        {"text": "It is safe.", "name": "safe", "veto": True},
    ]
)


def judge(judge: str, **more: Any) -> dict[str, Any]:
    return {"type": "judge", "engine": "judge", "model": "m", "judge": judge} | more


def labelled(*judges: dict[str, Any]) -> LabelConfig:
    return LabelConfig.model_validate(
        {"labelers": [one | {"name": f"j{at}"} for at, one in enumerate(judges)]}
    )


def test_criteria_that_hold_for_all_pairs_are_asked_once() -> None:
    of_both = criteria_to_ask(labelled(judge("rubric"), judge("rubric_rationale")))
    assert len(of_both.criteria) == 6
    assert not of_both.left_out
    assert criteria_to_ask(labelled(judge("rubric", criteria="prompt"))) == AskedCriteria()
    assert criteria_to_ask(labelled(judge("pairwise"))) == AskedCriteria()
    assert criteria_to_ask(None).lines == []


def test_too_many_are_told_and_the_heaviest_are_asked(tmp_path: Path) -> None:
    weights = [1, -5, *[2] * (MOST_ASKED - 2), 0.5]
    criteria: list[dict[str, Any]] = [
        {"text": f"t{at}", "weight": weight} for at, weight in enumerate(weights)
    ]
    criteria.append({"text": "never", "weight": 0.1, "veto": True})
    settings = {"kind": "rubric", "parser": "token", "max_tokens": 1, "criteria": criteria}
    (tmp_path / "judge.yaml").write_text(json.dumps(settings))
    shipped = Path("prefloop/labelers/judges/shipped/rubric/prompt.jinja")
    (tmp_path / "prompt.jinja").write_text(shipped.read_text())
    label = labelled(judge(str(tmp_path)))
    asked = criteria_to_ask(label)
    assert [one.text for one in asked.criteria] == [
        f"t{at}" for at in range(1, MOST_ASKED)
    ] + ["never"]  # fmt: skip
    assert [one.text for one in asked.left_out] == ["t0", f"t{MOST_ASKED}"]
    assert asked.lines[0].endswith(f"they are not asked about: t0, t{MOST_ASKED}")
    told = guidelines(label, "blind", asked)
    assert "questions about each answer by itself" in told
    assert f"no questions about these criteria, which count too:\n\n- t0\n- t{MOST_ASKED}" in told
    assert "by itself" not in guidelines(label, "blind")


def test_questions_have_the_criterions_text_and_choices() -> None:
    questions = criterion_questions(CRITERIA)
    assert [one.name for one in questions[:3]] == [
        "criterion_1_a", "criterion_1_b", "criterion_2_a",
    ]  # fmt: skip
    assert questions[0].title == "Answer A · It is right."
    assert questions[5].title == "Answer B · safe: It is safe."
    assert questions[0].labels == {"1": "no", "2": "in part", "3": "fully"}
    [long, _] = criterion_questions(criteria_of(["x" * 2000]))
    assert len(long.title) == 500


def response(pair: str = "p", **more: Any) -> dict[str, Any]:
    return {
        "response_id": "r", "pair_id": pair, "user_id": "u", "username": "ann",
        "status": "submitted", "verdict": "a", "reason": None, "inserted_at": "", "updated_at": "",
        "criteria": None,
    } | more  # fmt: skip


def test_answers_become_values_of_the_votes_own_a_and_b() -> None:
    values = {
        "verdict": {"value": "a"}, "criterion_1_a": {"value": "3"}, "criterion_1_b": {"value": "2"},
        "criterion_2_a": {"value": "2"}, "criterion_3_b": {"value": "1"},
        "criterion_3_a": {"value": "9"},  # of another form of the question
    }  # fmt: skip
    said = said_of_criteria(values, CRITERIA)
    assert said is not None
    assert json.loads(said) == [{"a": 3, "b": 2}, {"a": 2, "b": None}, {"a": None, "b": 1}]
    pushed = {"p": {"prompt_id": "q", "round": 0, "answer_a_id": "z", "answer_b_id": "y"}}
    [vote] = votes_of([response(criteria=said)], pushed, CRITERIA).to_pylist()
    assert (vote["a_id"], vote["order"], vote["preference"]) == ("y", "ba", "b")
    told = json.loads(vote["criteria"])
    assert told["from"] == "people"
    right, rambles, safe = told["criteria"]
    assert (right["a"], right["b"]) == (0.5, 1.0)
    assert (rambles["a"], rambles["b"]) == (None, 0.0)  # z has the fault
    assert (safe["a"], safe["a_fails"], safe["b"], safe["b_fails"]) == (0.0, True, None, None)


def test_who_says_nothing_of_criteria_votes_as_before() -> None:
    pushed = {"p": {"prompt_id": "q", "round": 0, "answer_a_id": "y", "answer_b_id": "z"}}
    assert said_of_criteria({"verdict": {"value": "a"}}, CRITERIA) is None
    votes = votes_of([response(), response(criteria=json.dumps([{"a": 1, "b": 1}]))], pushed)
    assert votes["criteria"].to_pylist() == [None, None]  # the second is about what nobody knows
    assert votes.schema.equals(VOTE)


def test_a_review_of_an_earlier_version_has_no_criteria(tmp_path: Path) -> None:
    folder = ReviewFolder(tmp_path / "review")
    assert folder.asked() == AskedCriteria()
    older = pa.schema([one for one in RESPONSE if one.name != "criteria"])
    write_shard(pa.Table.from_pylist([response()], older), folder.root / "responses.parquet", older)
    assert folder.responses()["criteria"].to_pylist() == [None]


def test_what_was_asked_is_kept(tmp_path: Path) -> None:
    folder = ReviewFolder(tmp_path / "review")
    asked = AskedCriteria(CRITERIA[:2], CRITERIA[2:])
    folder.write_asked(asked)
    assert folder.asked() == asked
    (folder.root / "criteria.json").write_text("{}")
    with pytest.raises(ReviewError, match=r"criteria\.json: holds no criteria"):
        folder.asked()
    folder.write_asked(AskedCriteria())
    assert folder.asked() == AskedCriteria()
