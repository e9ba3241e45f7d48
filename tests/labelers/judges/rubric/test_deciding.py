import json
from typing import Any

import pyarrow as pa
import pytest

from prefloop.data.schemas import VOTE
from prefloop.labelers.base import Vote, votes_table
from prefloop.labelers.judges.rubric.deciding import CRITERIA_COLUMNS, criteria_figures


def vote(
    pair: str, labeler: str = "j", told: list[dict[str, Any]] | None = None, **more: Any
) -> Vote:
    fields = {"preference": "tie", "order": "none"} | more
    if told is not None:
        source = fields.pop("source", "judge")
        fields["criteria"] = json.dumps({"from": source, "criteria": told})
    prompt = fields.pop("prompt_id", f"p{pair}")
    ids = {"a_id": f"{pair}a", "b_id": f"{pair}b"} | {
        key: fields.pop(key) for key in ("a_id", "b_id") if key in fields
    }
    return Vote(pair_id=pair, prompt_id=prompt, round=0, labeler=labeler, **ids, **fields)


def criterion(text: str, a: float | None, b: float | None, weight: float = 1.0) -> dict[str, Any]:
    return {"text": text, "name": None, "weight": weight, "veto": False, "a": a, "b": b}


def figures(*votes: Vote) -> Any:
    return criteria_figures([votes_table(votes).select(CRITERIA_COLUMNS)])


def test_the_criterion_that_decides_is_found() -> None:
    """Ten pairs: truth decides, manners go along with it in eight, spelling never varies."""
    votes = [
        vote(
            str(number),
            told=[
                criterion("spelt", 1.0, 1.0, weight=9),
                criterion("polite", *((1.0, 0.0) if number < 8 else (0.0, 1.0))),
                criterion("true", 1.0, 0.0, weight=5),
            ],
        )
        for number in range(10)
    ]
    [found] = figures(*votes)
    assert (found.labeler, found.idle, found.deciding) == ("j", 1, 1)
    true, polite, spelt = found.criteria
    assert [one.name for one in found.criteria] == ["true", "polite", "spelt"]
    # Without it, manners would turn two verdicts round, and give the other eight themselves.
    assert (true.decides, true.differs, true.agrees, true.mean) == (2, 10, 10, 0.5)
    assert (polite.decides, polite.differs, polite.agrees) == (0, 10, 8)
    assert (spelt.decides, spelt.is_idle, spelt.mean) == (0, True, 1.0)
    # 10 x 5 of the margins are truth's, 8 - 2 are manners'.
    assert [found.share(one) for one in found.criteria] == pytest.approx([50 / 56, 6 / 56, 0.0])
    assert not found.people


def test_without_a_criterion_a_tie_is_another_verdict() -> None:
    [found] = figures(vote("1", told=[criterion("x", 1.0, 0.5), criterion("y", 1.0, 1.0)]))
    assert [(one.name, one.decides) for one in found.criteria] == [("x", 1), ("y", 0)]
    [found] = figures(vote("1", told=[criterion("x", 1.0, 0.0), criterion("y", 0.0, 1.0)]))
    assert [one.decides for one in found.criteria] == [0, 0]  # there is no verdict to change


def test_a_veto_decides_against_all_weights() -> None:
    safe = criterion("safe", 0.1, 0.9) | {"veto": True, "a_fails": True, "b_fails": False}
    [found] = figures(vote("1", told=[safe, criterion("good", 1.0, 0.0, weight=100)]))
    by_name = {one.name: one for one in found.criteria}
    assert (by_name["safe"].decides, by_name["safe"].failed) == (1, 1)
    assert (by_name["good"].decides, by_name["good"].agrees) == (0, 0)


def test_people_are_compared_criterion_by_criterion() -> None:
    told = [criterion("short", 1.0, 0.0), criterion("kind", 0.0, 1.0, weight=0.5)]
    votes = [vote(str(number), told=told) for number in range(4)]
    people = [
        vote("0", "human:ann", preference="b"),
        vote("0", "human:bob", preference="b"),
        vote("1", "human:ann", preference="a"),
        # Shown the other way round: it is the same answer.
        vote("2", "human:ann", preference="a", a_id="2b", b_id="2a"),
        vote("3", "human:ann", preference="a"),
        vote("3", "human:bob", preference="b"),  # nobody knows
    ]
    [found] = figures(*votes, *people)
    assert found.people
    by_name = {one.name: (one.with_people, one.by_people) for one in found.criteria}
    assert by_name == {"short": (1, 3), "kind": (2, 3)}


def test_criteria_of_prompts_are_not_mixed_and_unread_values_do_not_count() -> None:
    own = {"source": "prompt"}
    [found] = figures(
        vote("1", told=[criterion("right", 1.0, 0.0)], **own),
        vote("2", told=[criterion("right", 0.0, 0.0)], **own),
        vote("3", told=[criterion("right", None, 0.0)], preference="invalid", **own),
    )
    assert found.from_prompts
    assert [(one.pairs, one.decides) for one in found.criteria] == [(1, 1), (1, 0)]


def test_votes_of_other_labelers_and_of_earlier_versions_have_none() -> None:
    assert figures(vote("1")) == []
    older = pa.table({name: pa.array([], VOTE.field(name).type) for name in CRITERIA_COLUMNS})
    assert criteria_figures([older]) == []


@pytest.mark.parametrize("gap", [0.04, 0.06])
def test_small_differences_are_none(gap: float) -> None:
    [found] = figures(vote("1", told=[criterion("x", 0.5, 0.5 + gap)]))
    assert found.criteria[0].differs == int(gap > 0.05)
