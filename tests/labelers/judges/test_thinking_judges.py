"""Judges that think before they answer: the thought is kept in the vote and never read."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from prefloop.data.protocol import Completion
from prefloop.labelers.base import votes_table
from prefloop.labelers.judges.folder import load_judge
from prefloop.labelers.judges.reread import reread
from tests.helpers.judging import ScriptedEngine, all_pairs, completion, label

THOUGHT = 'The first says [[A]], and A it is, {"verdict": "A", "helpfulness": 1}.'
BEFORE = {"reasoning": THOUGHT, "reasoning_tokens": 30, "completion_tokens": 40}


def says(text: str, **probabilities: float) -> Completion:
    """An answer behind the thought."""
    return replace(completion(text, **probabilities), **BEFORE)


def ratings(judge: str, number: int) -> str:
    aspects = load_judge(judge).settings.aspects
    return json.dumps({"rationale": "x", **dict.fromkeys(aspects, number)})


ANSWERS = {
    "pairwise": lambda: says("B", A=0.1, B=0.8),
    "pairwise_short": lambda: says("B", A=0.1, B=0.8),
    "pairwise_rationale": lambda: says('{"rationale": "x", "verdict": "B"}'),
    "listwise": lambda: says('{"rationale": "x", "ranking": [["B"], ["A"]]}'),
    "rating": lambda: says("4", **{"4": 0.9}),
    "rating_rationale": lambda: says(ratings("rating_rationale", 4)),
}


@pytest.mark.parametrize("judge", ANSWERS)
def test_the_thought_is_kept_and_not_read(judge: str) -> None:
    engine = ScriptedEngine(lambda _: ANSWERS[judge]())
    votes = label(engine, *all_pairs("one", "two"), judge=judge, orders="one")
    plain = ScriptedEngine(lambda _: replace(ANSWERS[judge](), reasoning=None, reasoning_tokens=0))
    without = label(plain, *all_pairs("one", "two"), judge=judge, orders="one")
    for vote, other in zip(votes, without, strict=True):
        assert vote.preference == other.preference != "invalid"
        assert vote.p_a == other.p_a
        assert "and A it is" in (vote.reasoning or "")
        assert "and A it is" not in vote.completion
        assert vote.reasoning_tokens % 30 == 0
        assert vote.reasoning_tokens < vote.completion_tokens
    table = votes_table(votes)
    assert reread(table, load_judge(judge), seed=0).equals(table)


@pytest.mark.parametrize("judge", ANSWERS)
@pytest.mark.parametrize("hidden", [False, True])
def test_a_thought_without_an_answer_is_no_vote(judge: str, hidden: bool) -> None:
    silent = replace(says(""), finish_reason="length", reasoning=None if hidden else THOUGHT)
    votes = label(ScriptedEngine(lambda _: silent), *all_pairs("one", "two"), judge=judge)
    assert {vote.preference for vote in votes} == {"invalid"}
    assert all("thought_tokens" in vote.rationale for vote in votes)
    table = votes_table(votes)
    assert reread(table, load_judge(judge), seed=0).equals(table)


@pytest.mark.parametrize(("text", "expected"), [("B", "b"), (" A.", "a"), ("Bad", "invalid")])
def test_a_token_judge_whose_probabilities_nobody_saw(text: str, expected: str) -> None:
    """Behind a thought, the word itself is the verdict, without a probability."""
    votes = label(ScriptedEngine(lambda _: says(text)), *all_pairs("one", "two"),
                  judge="pairwise_short", orders="both")  # fmt: skip
    [vote] = [one for one in votes if one.order == "ab"]
    assert (vote.preference, vote.p_a) == (expected, None)
    # Without a thought, it has none.
    plain = replace(completion(text), reasoning=None)
    votes = label(ScriptedEngine(lambda _: plain), *all_pairs("one", "two"),
                  judge="pairwise_short")  # fmt: skip
    assert {vote.preference for vote in votes} == {"invalid"}


def test_a_rating_whose_probabilities_nobody_saw() -> None:
    votes = label(ScriptedEngine(lambda _: says("4")), *all_pairs("one", "two"), judge="rating")
    assert {(vote.preference, vote.score_a) for vote in votes} == {("tie", 4.0)}
    odd = ScriptedEngine(lambda _: says("9"))
    assert {one.preference for one in label(odd, *all_pairs("a", "b"), judge="rating")} == {
        "invalid"
    }
