"""Figures of a judge by hand, and calibration error against its definition."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import brier_score_loss

from prefloop.data.errors import InputError
from prefloop.data.preferences.gold import GoldPair
from prefloop.labelers.base import Vote, votes_table
from prefloop.labelers.statistics.calibration_error import calibration
from prefloop.pipeline.judging.judge_figures import judge_figures


def gold_pair(row: int, gold: str, a: str = "aaaa", b: str = "bb") -> GoldPair:
    messages = ({"role": "user", "content": f"question {row}"},)
    return GoldPair("gold", row, messages, a, b, gold, "a")


def vote(pair: GoldPair, order: str, preference: str, p_a: float | None = None, **more) -> Vote:
    return Vote(
        pair_id=pair.pair_id, prompt_id=pair.prompt_id, round=0, a_id=pair.a_id, b_id=pair.b_id,
        labeler="j", order=order, preference=preference, p_a=p_a, **more,
    )  # fmt: skip


def both(pair: GoldPair, ab: str, ba: str) -> list[Vote]:
    return [vote(pair, "ab", ab), vote(pair, "ba", ba)]


def test_figures_by_hand() -> None:
    gold = [
        gold_pair(1, "a"),  # a is the longer one in all but the last
        gold_pair(2, "a"), gold_pair(3, "b"), gold_pair(4, "b"), gold_pair(5, "tie"),
        gold_pair(6, "a", "xx", "yyyy"),
    ]  # fmt: skip
    votes = [
        *both(gold[0], "a", "a"),  # right in both
        *both(gold[1], "a", "b"),  # the first shown each time: a tie
        *both(gold[2], "a", "a"),  # wrong in both
        *both(gold[3], "b", "b"),  # right in both
        *both(gold[4], "tie", "tie"),
        *both(gold[5], "b", "invalid"),  # no verdict
    ]
    found = judge_figures("j", votes_table(votes), gold)
    assert (found.pairs, found.judged, found.gold_ties) == (6, 5, 1)
    assert (found.votes, found.invalid_votes, found.tie_votes) == (12, 1, 2)
    # Right 1, tie 0.5, wrong 0, right 1 of the four pairs with a verdict and a decided gold label.
    assert found.accuracy is not None
    assert (found.accuracy.value, found.accuracy.n) == (2.5 / 4, 4)
    # Single votes: 1 1, 1 0, 0 0, 1 1 and the sixth pair's 0.
    assert found.vote_accuracy is not None
    assert (found.vote_accuracy.value, found.vote_accuracy.n) == (pytest.approx(5 / 9), 9)
    assert found.both_right is not None
    assert (found.both_right.value, found.both_right.n) == (0.5, 4)
    # Pairs 1, 3, 4, 5 have the same verdict in both orders, pair 2 has not.
    assert found.swap_agreement is not None
    assert (found.swap_agreement.value, found.swap_agreement.n) == (0.8, 5)
    # First shown: pair 1 a of ab; 2 both; 3 a of ab; 4 b of ba; 6 none: 5 of 9 votes.
    assert found.first_share is not None
    assert (found.first_share.value, found.first_share.n) == (pytest.approx(5 / 9), 9)
    # Better is longer: pairs 1 and 2 (1, 0.5); shorter: pairs 3 and 4 (0, 1).
    assert found.accuracy_longer is not None
    assert found.accuracy_longer.value == 0.75
    assert found.accuracy_shorter is not None
    assert found.accuracy_shorter.value == 0.5
    # Verdicts a, a, b on pairs 1, 3, 4, whose a is longer; gold a, b, b.
    assert found.prefers_longer is not None
    assert found.prefers_longer.value == pytest.approx(2 / 3)
    assert found.gold_longer is not None
    assert found.gold_longer.value == pytest.approx(1 / 3)
    # Verdicts a, tie, a, b, tie; gold a, a, b, b, tie: 3 of 5 alike; chance (2x2 + 1x2 + 2x1) / 25.
    assert found.kappa == pytest.approx((0.6 - 8 / 25) / (1 - 8 / 25))
    # Twice as long or half as long: the outer bins.
    assert [one and one.n for one in found.by_gap] == [2, None, None, None, 2]
    assert found.calibration is None
    assert found.tokens_per_1000 is None


def test_cost_of_a_label() -> None:
    gold = [gold_pair(1, "a"), gold_pair(2, "b")]
    spent = {"prompt_tokens": 90, "completion_tokens": 10, "cost": 0.01}
    votes = [vote(pair, order, "a", **spent) for pair in gold for order in ("ab", "ba")]
    found = judge_figures("j", votes_table(votes), gold)
    assert found.completions_per_label == 2
    assert found.tokens_per_1000 == 200_000
    assert found.cost_per_1000 == pytest.approx(20)


def test_requests_are_not_votes() -> None:
    one, other = (
        GoldPair("gold", row, ({"role": "user", "content": "the same"},), "x", answer, "a", "a")
        for row, answer in ((1, "yy"), (2, "zzz"))
    )
    assert one.prompt_id == other.prompt_id
    spent = {"prompt_tokens": 90, "completion_tokens": 10}
    # Two listings of three answers: four votes, the first of each listing is charged.
    ranked = [
        vote(pair, order, "a", prompt_hash=order, **(spent if pair is one else {}))
        for pair in (one, other)
        for order in ("ab", "ba")
    ]
    assert judge_figures("j", votes_table(ranked), [one, other]).completions_per_label == 1
    # Three answers, each rated in two aspects: six requests for two pairs.
    said = json.dumps({"a": ["7", "8"], "b": ["3", "4"]})
    rated = [vote(pair, "none", "a", completion=said, **spent) for pair in (one, other)]
    ids = {one.a_id, one.b_id, other.a_id, other.b_id}
    found = judge_figures("j", votes_table(rated), [one, other])
    assert found.completions_per_label == 2 * len(ids) / 2


def test_a_perfect_judge_has_an_error_of_its_size() -> None:
    draw = np.random.default_rng(1)
    found = []
    for _ in range(200):
        p = draw.uniform(0, 1, 80)
        found.append(calibration(p, draw.random(80) < p))
    assert np.mean([one.ece for one in found]) == pytest.approx(
        np.mean([one.ece_perfect for one in found]), rel=0.1
    )
    above = np.mean([one.ece > one.ece_perfect_high for one in found])
    assert 0.01 < above < 0.1
    many = draw.uniform(0, 1, 8000)
    assert calibration(many, draw.random(8000) < many).ece_perfect < found[0].ece_perfect / 5
    sure = calibration(np.ones(30), np.ones(30))
    assert (sure.ece, sure.ece_perfect, sure.ece_perfect_high) == (0, 0, 0)
    assert calibration(np.full(30, 0.5), np.ones(30)).ece_perfect == 0


def test_a_judge_that_likes_length_is_found_out() -> None:
    draw = np.random.default_rng(0)
    gold, votes = [], []
    for row in range(400):
        a, b = ("x" * int(n) for n in draw.integers(10, 200, 2))
        gold.append(gold_pair(row, "a" if draw.random() < 0.5 else "b", a, b))
        says = "a" if len(a) >= len(b) else "b"
        votes += both(gold[-1], says, says)
    found = judge_figures("j", votes_table(votes), gold)
    assert found.accuracy is not None
    assert found.accuracy.value == pytest.approx(0.5, abs=0.06)
    assert found.prefers_longer is not None
    assert found.prefers_longer.value > 0.99
    assert found.accuracy_longer is not None
    assert found.accuracy_longer.value == 1.0
    assert found.accuracy_shorter is not None
    assert found.accuracy_shorter.value < 0.02
    assert found.gold_longer is not None
    assert found.gold_longer.low < 0.5 < found.gold_longer.high


def test_soft_votes_are_averaged_over_the_orders() -> None:
    gold = [gold_pair(row, "a") for row in range(20)]
    votes = []
    for pair in gold:  # 0.9 and 0.3: contradictory, 0.6 on average
        votes += [vote(pair, "ab", "a", 0.9), vote(pair, "ba", "b", 0.3)]
    found = judge_figures("j", votes_table(votes), gold)
    assert found.accuracy is not None
    assert found.accuracy.value == 0.5
    assert found.calibration is not None
    assert [one.confidence for one in found.calibration.bins] == pytest.approx([0.6])
    assert found.calibration.ece == pytest.approx(0.4)


def test_no_valid_verdict_is_one_line() -> None:
    gold = [gold_pair(1, "a"), gold_pair(2, "tie")]
    votes = [vote(gold[0], "ab", "invalid"), vote(gold[1], "ab", "a")]
    with pytest.raises(InputError, match="j: no valid verdict"):
        judge_figures("j", votes_table(votes), gold)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 10), st.integers(0, 10), st.booleans(), st.booleans()),
             min_size=20, max_size=150),
    st.randoms(use_true_random=False),
)  # fmt: skip
def test_calibration_error_knows_nothing_of_which_answer_is_a_or_of_the_order(rows, random) -> None:
    """A judge of few confidences, whose mean over both orders is off by a last bit."""

    def error(rows: list) -> tuple:
        p_a, truth = [], []
        for first, second, better, turned in rows:
            one, other = (second, first) if turned else (first, second)
            p_a.append((one / 10 + (1 - other / 10)) / 2)
            truth.append(better != turned)
        found = calibration(p_a, truth)
        assert min(one.accuracy.n for one in found.bins) >= 10
        return found.ece, [one.accuracy.value for one in found.bins]

    turned = [(*row[:3], random.random() < 0.5) for row in rows]
    random.shuffle(turned)
    straight = [(*row[:3], False) for row in rows]
    assert error(turned)[0] == pytest.approx(error(straight)[0])
    assert error(turned)[1] == pytest.approx(error(straight)[1])


def test_calibration_error_by_hand() -> None:
    # Confidence 0.9 and right in 8 of 10; 0.6 and right in 5 of 10, as a or as b.
    p_a = np.array([0.9] * 10 + [0.4] * 10)
    a_is_better = np.array([True] * 8 + [False] * 2 + [False] * 5 + [True] * 5)
    found = calibration(p_a, a_is_better)
    assert [(one.confidence, one.accuracy.value) for one in found.bins] == [
        (pytest.approx(0.6), 0.5), (pytest.approx(0.9), 0.8),
    ]  # fmt: skip
    assert found.ece == pytest.approx((10 * 0.1 + 10 * 0.1) / 20)
    assert found.brier == pytest.approx(brier_score_loss(a_is_better, p_a))
    # Naming the answers the other way round changes nothing.
    other = calibration(1 - p_a, ~a_is_better)
    assert (other.ece, other.brier, other.log_loss) == pytest.approx(
        (found.ece, found.brier, found.log_loss)
    )
    assert np.isfinite(calibration([1.0, 0.0], [False, True]).log_loss)
    with pytest.raises(ValueError, match="one each"):
        calibration([], [])
