"""Judges with a rubric and people, criterion by criterion."""

from __future__ import annotations

import json
from typing import Any

import pytest

from prefloop.labelers.base import Vote, votes_table
from prefloop.labelers.judges.rubric.deciding import CRITERIA_COLUMNS, criteria_figures
from prefloop.labelers.judges.rubric.with_people import criteria_with_people
from prefloop.labelers.statistics.winrate import win_rate

THREE = ["no", "in part", "fully"]


def told(text: str, a: float | None, b: float | None, weight: float = 1.0) -> dict[str, Any]:
    return {"text": text, "name": None, "weight": weight, "choices": THREE, "veto": False,
            "a": a, "b": b}  # fmt: skip


def vote(pair: str, labeler: str, *criteria: dict[str, Any], **more: Any) -> Vote:
    source = more.pop("source", "people" if labeler.startswith("human:") else "judge")
    fields = {"a_id": f"{pair}a", "b_id": f"{pair}b", "prompt_id": f"p{pair}"} | more
    return Vote(
        pair_id=pair, round=0, labeler=labeler, preference="tie", order="none",
        criteria=json.dumps({"from": source, "criteria": criteria}), **fields,
    )  # fmt: skip


def found(*votes: Vote) -> Any:
    return criteria_with_people([votes_table(votes).select(CRITERIA_COLUMNS)])


def test_the_choice_nearest_to_a_judges_value_is_compared() -> None:
    votes = [
        vote("1", "j", told("x", 0.9, 0.3)),  # fully, in part
        vote("1", "human:ann", told("x", 1.0, 0.5)),
        vote("2", "j", told("x", 0.75, 0.0)),  # between in part and fully
        vote("2", "human:ann", told("x", 1.0, 0.5)),
    ]
    [one] = found(*votes)
    assert (one.labeler, one.name, one.people) == ("j", "x", None)
    assert one.same == win_rate([1, 1, 0.5, 0], ["p1", "p1", "p2", "p2"])
    assert one.apart == win_rate([1, 1], ["p1", "p2"])
    assert one.mean_judge == pytest.approx((0.9 + 0.3 + 0.75) / 4)
    assert one.mean_people == 0.75


def test_answers_are_told_by_id_and_each_person_counts() -> None:
    """Bob saw the answers the other way round, and did not say all."""
    votes = [
        vote("1", "j", told("x", 1.0, 0.0), told("y", 1.0, 1.0)),
        vote("1", "human:ann", told("x", 1.0, 0.0), told("y", None, 0.0)),
        vote("1", "human:bob", told("x", 1.0, 0.5), told("y", None, None), a_id="1b", b_id="1a"),
    ]
    y, x = found(*votes)
    assert (y.name, y.same.value, y.same.n, y.apart, y.people) == ("y", 0.0, 1, None, None)
    # Ann: both. Bob: b is full, a in part; the judge says the opposite of the first only.
    assert (x.same.value, x.same.n) == (0.5, 4)
    assert (x.apart.value, x.apart.n) == (0.5, 2)
    assert (x.people.value, x.people.n) == (0.0, 2)


def test_pairs_that_the_judge_does_not_tell_apart_count_half() -> None:
    votes = [
        vote("1", "j", told("x", 0.51, 0.5)),
        vote("1", "human:ann", told("x", 1.0, 0.5)),
        vote("2", "j", told("x", 1.0, 0.0)),
        vote("2", "human:ann", told("x", 0.5, 0.5)),  # nor does she: nothing to compare
    ]
    [one] = found(*votes)
    assert (one.apart.value, one.apart.n) == (0.5, 1)


def test_a_weight_that_became_a_faults_changes_nothing() -> None:
    """People were asked when it was no fault: what they chose stays the same choice."""
    [one] = found(
        vote("1", "j", told("x", 0.0, 1.0, weight=-2)),
        vote("1", "human:ann", told("x", 1.0, 0.0)),
    )
    assert (one.same.value, one.apart.value, one.mean_judge) == (1.0, 1.0, 0.5)


def test_other_questions_are_not_compared() -> None:
    person = vote("1", "human:ann", told("x", 1.0, 0.0))
    yes_no = told("x", 1.0, 0.0) | {"choices": ["no", "yes"]}
    assert found(person, vote("1", "j", yes_no)) == []
    assert found(person, vote("1", "j", told("x", 1.0, 0.0), source="prompt")) == []
    assert found(person, vote("2", "j", told("x", 1.0, 0.0))) == []
    assert found(vote("1", "j", told("x", 1.0, 0.0))) == []


def test_people_are_no_judges_with_a_rubric() -> None:
    votes = [vote("1", "j", told("x", 1.0, 0.0)), vote("1", "human:ann", told("x", 1.0, 0.0))]
    table = votes_table(votes).select(CRITERIA_COLUMNS)
    assert [one.labeler for one in criteria_figures([table])] == ["j"]
