import json
import math
import re

import numpy as np
import pytest

from prefloop.data.protocol import Completion, Request, RequestRejected
from prefloop.labelers.judges.folder import load_judge
from prefloop.labelers.judges.ratings import (
    Rating,
    compare,
    from_ratings_json,
    from_ratings_logprobs,
)
from prefloop.labelers.judges.settings import RatingSettings
from tests.helpers.judging import ScriptedEngine, all_pairs, completion, label

TWO = RatingSettings(
    kind="rating", parser="token", max_tokens=1, aspects={"x": "?", "y": "?"}, lowest=1, highest=3
)
ONE = RatingSettings(kind="rating", parser="json", max_tokens=9, aspects={"x": "?"})
ASPECTS = ["instruction_following", "truthfulness", "honesty", "helpfulness"]


def shares(*values: float) -> dict[str, float]:
    """Log-probabilities of the ratings 1, 2, 3, ..."""
    return {str(i): math.log(v) if v else -math.inf for i, v in enumerate(values, start=1)}


def rates(**scores: float) -> ScriptedEngine:
    """A judge that gives an answer with this word a rating of 5 with this probability, else 1."""

    def script(request: Request) -> Completion:
        answer = re.findall(r"<answer>\n(.*)\n</answer>", request.messages[-1]["content"])[0]
        p = scores[answer]
        found = {"1": 1 - p, "2": 0.0, "3": 0.0, "4": 0.0, "5": p}
        return completion("5" if p > 0.5 else "1", **found)

    return ScriptedEngine(script)


def test_expected_ratings_and_the_probability_that_one_sum_is_higher() -> None:
    a = from_ratings_logprobs([shares(0.0, 0.5, 0.5), shares(0.0, 0.0, 1.0)], TWO)
    b = from_ratings_logprobs([shares(0.0, 1.0, 0.0), shares(0.0, 0.5, 0.5)], TWO)
    # By hand: a is 2 or 3 on x, 3 on y: sums 5, 6 with 1/2 each; mean (2.5 + 3) / 2 = 2.75.
    # b is 2 on x, 2 or 3 on y: sums 4, 5 with 1/2 each; mean (2 + 2.5) / 2 = 2.25.
    assert a.totals == pytest.approx([0, 0, 0, 0.5, 0.5])
    assert (a.score, b.score) == pytest.approx((2.75, 2.25))
    # a > b unless both are 5 (1/4), which counts half: 3/4 + 1/8.
    assert compare(a, b) == ("a", pytest.approx(0.875))
    assert compare(b, a) == ("b", pytest.approx(0.125))
    assert compare(a, a) == ("tie", 0.5)


def test_shares_are_of_what_the_ratings_have_together() -> None:
    rating = from_ratings_logprobs([shares(0.2, 0.0, 0.4), shares(0.3, 0.3, 0.0)], TWO)
    # 0.2 and 0.4 of 0.6 are 1/3 and 2/3: mean 7/3; 1/2 and 1/2 on 1 and 2: mean 3/2.
    assert rating.score == pytest.approx((7 / 3 + 3 / 2) / 2)
    assert rating.totals.sum() == pytest.approx(1.0)


@pytest.mark.parametrize("found", [None, {}, shares(0.1, 0.1, 0.1), {"1": math.nan}])
def test_ratings_are_never_guessed(found: dict[str, float] | None) -> None:
    with pytest.raises(ValueError, match="y: "):
        from_ratings_logprobs([shares(1.0), found], TWO)


def test_an_engine_without_log_probabilities_is_named() -> None:
    unseen = dict.fromkeys(ONE.words, -math.inf)
    for found, said in ((None, "4"), ({}, "Well"), (unseen, "4"), (unseen, " 4.")):
        with pytest.raises(ValueError, match="x: the engine gave no log-probabilities"):
            from_ratings_logprobs([found], ONE, [said])
    with pytest.raises(ValueError, match="probability 0 in all"):
        from_ratings_logprobs([unseen], ONE, ["Well"])
    with pytest.raises(ValueError, match="above 0"):
        from_ratings_logprobs([{**unseen, "4": 800.0}], ONE, ["4"])
    with pytest.raises(ValueError, match="x: the ratings have probability 5 in all, more than 1"):
        from_ratings_logprobs([dict.fromkeys(ONE.words, 0.0)], ONE, ["4"])


def test_one_rating_from_json() -> None:
    rating = from_ratings_json('{"rationale": "fair", "x": 4}', ONE)
    assert (rating.score, rating.rationale) == (4.0, "fair")
    assert rating.totals.tolist() == [0, 0, 0, 1, 0]


@pytest.mark.parametrize(
    "text",
    ['{"x": "4"}', '{"x": 4.0}', '{"x": " 4 "}', '{"x": "4.0"}', '{"x": 4e0}', '{"x": 40e-1}',
     '{"x": 4, "x": 4.0}', '```json\n{"x": 4}\n```', '``` JSON\n{"x": 4.0}```',
     '~~~\n{"x": "4"}\n~~~',
     '```json\n{"rationale": "```{}```", "x": 4}\n```'],
)  # fmt: skip
def test_every_way_to_write_a_whole_number_is_a_rating(text: str) -> None:
    assert from_ratings_json(text, ONE).score == 4.0


@pytest.mark.parametrize(
    "text",
    ["", "4", '{"y": 4}', '{"x": 0}', '{"x": 6}', '{"x": 4.5}', '{"x": true}', '{"x": null}',
     '{"x": 1, "x": true}', '{"x": {"x": 4}}', '{"x": 4.0000001}', '{"x": "4.5"}', '{"x": 1e999}',
     '{"x": NaN}', '{"x": "+4"}', '{"x": ""}', '{"x": "4/5"}', '{"x": "٤"}',
     '{"x": 1' + "0" * 9999 + "}",
     '{"x": [4]}', '{"x": 4, "x": 5}', '{"x": 4} {"x": 5}', '{"x": "four"}'],
)  # fmt: skip
def test_ratings_that_cannot_be_read_are_invalid(text: str) -> None:
    with pytest.raises(ValueError, match=r"x|JSON|conflicting"):
        from_ratings_json(text, ONE)


def test_each_answer_is_rated_once_however_many_pairs_it_is_in() -> None:
    engine = rates(good=0.9, fair=0.5, bad=0.1)
    votes = label(engine, *all_pairs("good", "fair", "bad"), judge="rating")
    assert len(engine.requests) == 3 * 4
    assert {request.block_size for request in engine.requests} == {12}
    assert len({request.seeds for request in engine.requests}) == 12
    assert [vote.preference for vote in votes] == ["a", "a", "a"]
    assert {vote.order for vote in votes} == {"none"}
    # Expected rating 1 + 4p: 4.6, 3.0, 1.4.
    assert [(vote.score_a, vote.score_b) for vote in votes] == [
        pytest.approx(pair) for pair in [(4.6, 3.0), (4.6, 1.4), (3.0, 1.4)]
    ]
    # Good against bad, by hand: each has Binomial(4, p) fives; numpy does the sum.
    good, bad = (
        [math.comb(4, k) * p**k * (1 - p) ** (4 - k) for k in range(5)] for p in (0.9, 0.1)
    )
    joint = np.outer(good, bad)
    expected = np.tril(joint, -1).sum() + np.trace(joint) / 2
    assert votes[1].p_a == pytest.approx(expected)
    assert sum(vote.cost for vote in votes) == pytest.approx(12 * 0.5)
    assert sum(vote.prompt_tokens for vote in votes) == 12 * 20


def test_all_aspects_at_once_as_json() -> None:
    def script(request: Request) -> Completion:
        good = "good" in request.messages[-1]["content"].split("<answer>")[1]
        ratings = dict.fromkeys(ASPECTS, 4 if good else 3) | {"honesty": 5 if good else 4}
        return completion(json.dumps({"rationale": "r", **ratings}))

    engine = ScriptedEngine(script)
    votes = label(engine, *all_pairs("good", "fair", "bad"), judge="rating_rationale")
    assert len(engine.requests) == 3
    assert [vote.preference for vote in votes] == ["a", "a", "tie"]
    assert [vote.p_a for vote in votes] == [None] * 3
    assert (votes[0].score_a, votes[0].score_b) == (4.25, 3.25)
    assert votes[0].rationale == "a: r\nb: r"
    schema = engine.requests[0].json_schema
    assert schema is not None
    assert schema["required"] == ["rationale", *ASPECTS]


def test_an_answer_that_cannot_be_rated_spoils_its_own_pairs_only() -> None:
    engine = rates(good=0.9, fair=0.5)

    def script(request: Request) -> Completion:
        if "\nbad\n" in request.messages[-1]["content"]:
            raise RequestRejected("context_overflow", "too long")
        if "\nodd\n" in request.messages[-1]["content"]:
            return completion("Well", **{"1": 0.1})
        return engine.script(request)

    votes = label(ScriptedEngine(script), *all_pairs("good", "fair", "bad", "odd"), judge="rating")
    found = [vote.preference for vote in votes]  # 01, 02, 03, 12, 13, 23
    assert found == ["a", "invalid", "invalid", "invalid", "invalid", "invalid"]
    assert (votes[1].completion, votes[1].rationale) == ("context_overflow: too long", None)
    assert "b: instruction following: the ratings have probability 0.1" in (
        votes[2].rationale or ""
    )
    assert votes[2].score_a == pytest.approx(4.6)
    assert votes[2].p_a is None


def test_the_questions_about_one_answer_differ_in_the_last_line_only() -> None:
    engine = rates(good=0.9, bad=0.1)
    label(engine, *all_pairs("good", "bad"), judge="rating")
    texts = [request.messages[-1]["content"] for request in engine.requests]
    assert len({text.rsplit("\n", 1)[0] for text in texts}) == 2
    assert len(set(texts)) == 8


def test_the_shipped_rating_judges_rate_what_ultrafeedback_rates() -> None:
    for name in ("rating", "rating_rationale"):
        settings = load_judge(name).settings
        assert isinstance(settings, RatingSettings)
        assert [aspect.replace(" ", "_") for aspect in settings.aspects] == ASPECTS
        assert settings.words == ("1", "2", "3", "4", "5")


def test_certain_ratings_compare_without_rounding() -> None:
    high, low = (Rating(np.eye(5)[i], i + 1.0) for i in (4, 0))
    assert compare(high, low) == ("a", 1.0)
    assert compare(low, high) == ("b", 0.0)


def test_several_votes_in_json_are_a_distribution() -> None:
    said = {"x": [4, 4, 2], "y": [2, 2, 4]}
    asked = dict.fromkeys(said, 0)

    def script(request: Request) -> Completion:
        answer = re.findall(r"<answer>\n(.*)\n</answer>", request.messages[-1]["content"])[0]
        rating = said[answer][asked[answer]]
        asked[answer] += 1
        return completion(json.dumps(dict.fromkeys(ASPECTS, rating)))

    engine = ScriptedEngine(script)
    [vote] = label(engine, *all_pairs("x", "y"), judge="rating_rationale", votes=3, temperature=1.0)
    assert len({request.seeds for request in engine.requests}) == 6
    assert (vote.score_a, vote.score_b) == (pytest.approx(10 / 3), pytest.approx(8 / 3))
    # Above with 2/3 * 2/3, equal with 2 * 2/9, which counts half.
    assert (vote.preference, vote.p_a) == ("a", pytest.approx(4 / 9 + 2 / 9))
    assert sum(vote.cost for vote in [vote]) == pytest.approx(6 * 0.5)
