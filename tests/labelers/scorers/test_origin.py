"""Which member's answers the labeler ``origin`` prefers, and on which pairs it says nothing."""

from __future__ import annotations

import asyncio
from itertools import combinations

import pytest
from pydantic import ValidationError

from prefloop.labelers.base import Answer, Pair
from prefloop.labelers.config import OriginLabeler
from prefloop.labelers.factory import build_labeler


def votes_on(answers: list[tuple[str, str]], *order: str) -> list[tuple[str, str, float | None]]:
    """Who wins in each pair of these (policy, text) that is voted on."""
    made = [Answer(f"{n}", text, 1, "sampled", policy) for n, (policy, text) in enumerate(answers)]
    pairs = [
        Pair(f"{a.candidate_id}{b.candidate_id}", "p", 0, (), None, {}, a, b)
        for a, b in combinations(made, 2)
    ]
    labeler = build_labeler(OriginLabeler(order=order), engine=None, seed=0)
    votes = asyncio.run(labeler.label(pairs, block="b"))
    assert {(vote.labeler, vote.order) for vote in votes} <= {("origin", "none")}
    return [(vote.pair_id, vote.preference, vote.p_a) for vote in votes]


def test_the_member_that_stands_first_is_preferred_whichever_is_a() -> None:
    answers = [("weak", "x"), ("strong", "y"), ("middle", "z"), ("strong", "u")]
    assert votes_on(answers, "strong", "middle", "weak") == [
        ("01", "b", 0.0),
        ("02", "b", 0.0),
        ("03", "b", 0.0),
        ("12", "a", 1.0),
        ("23", "b", 0.0),
    ]


def test_others_are_no_concern_of_it() -> None:
    assert votes_on([("weak", "x"), ("stranger", "y")], "strong", "weak") == []


def test_a_text_that_both_members_wrote_says_nothing_of_them() -> None:
    answers = [("strong", "same"), ("weak", " same"), ("weak", "other"), ("strong", "best")]
    assert votes_on(answers, "strong", "weak") == [("23", "b", 0.0)]


def test_members_on_one_side_may_have_said_the_same() -> None:
    answers = [("strong", "same"), ("middle", "same"), ("weak", "other")]
    assert votes_on(answers, "strong", "middle", "weak") == [("02", "a", 1.0), ("12", "a", 1.0)]


@pytest.mark.parametrize("order", [("one",), ("one", "two", "one")])
def test_an_order_names_two_members_once_each(order: tuple[str, ...]) -> None:
    with pytest.raises(ValidationError, match=r"at least 2|twice"):
        OriginLabeler(order=order)
