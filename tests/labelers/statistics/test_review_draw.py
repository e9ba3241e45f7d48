"""Drawing pairs for people with known chances, and estimating from what they say."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prefloop.data.hashing import content_id
from prefloop.labelers.base import LabelerError
from prefloop.labelers.statistics.dataset_accuracy import dataset_accuracy
from prefloop.labelers.statistics.review_draw import STRATEGIES, draw


def population(size: int, seed: int = 0) -> tuple[list[str], np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    ids = [content_id("pair", number) for number in range(size)]
    return ids, generator.uniform(0.5, 1, size), generator.choice([0.5, 1.0], size)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_chances_are_what_they_are_said_to_be(strategy: str) -> None:
    ids, p_chosen, agreement = population(40)
    times, inclusion = np.zeros(40), np.zeros(40)
    for seed in range(2000):
        found = draw(ids, p_chosen, agreement, 10, strategy, seed=seed)
        times[found.index] += 1
        inclusion[found.index] = found.inclusion
    assert inclusion.sum() == pytest.approx(10)
    assert (inclusion > 0).all()
    np.testing.assert_allclose(times / 2000, inclusion, atol=0.045)  # four standard errors


@settings(max_examples=60, deadline=None)
@given(size=st.integers(1, 60), n=st.integers(1, 60), seed=st.integers(0, 5))
def test_exactly_n_different_pairs_are_drawn(size: int, n: int, seed: int) -> None:
    ids, p_chosen, agreement = population(size, seed)
    for strategy in STRATEGIES:
        found = draw(ids, p_chosen, agreement, n, strategy, seed=seed)
        assert len(set(found.index.tolist())) == len(found.index) == min(n, size)
        assert ((found.inclusion > 0) & (found.inclusion <= 1 + 1e-9)).all()
        order = np.random.default_rng(seed).permutation(size)
        other = draw(
            [ids[at] for at in order], p_chosen[order], agreement[order], n, strategy, seed=seed
        )
        assert [ids[order[at]] for at in other.index] == [ids[at] for at in found.index]


def test_uncertain_pairs_come_first_and_more_often() -> None:
    ids = [content_id(number) for number in range(100)]
    p_chosen = np.r_[np.full(50, 0.5), np.full(50, 0.999)]
    found = draw(ids, p_chosen, np.ones(100), 30, "uncertain", seed=0)
    assert (found.index < 50).mean() > 0.8
    ranks = p_chosen[found.index]
    assert (np.diff(ranks) >= 0).all()
    # Disagreement draws those on which labelers disagree; where none do, all alike.
    disagreed = draw(ids, p_chosen, np.r_[np.full(90, 1.0), np.full(10, 0.5)], 10, "disagreement",
                     seed=0)  # fmt: skip
    # A tenth by equal chances, 0.1 x 10 / 100, and nine tenths on the ten disagreed on.
    assert disagreed.inclusion.max() == pytest.approx(0.91)
    assert disagreed.inclusion.min() == pytest.approx(0.01)
    np.testing.assert_allclose(
        draw(ids, p_chosen, np.ones(100), 30, "disagreement", seed=0).inclusion, 0.3
    )


@pytest.mark.parametrize("strategy", ["random", "uncertain", "mixed"])
def test_the_interval_covers_the_truth_whatever_the_strategy(strategy: str) -> None:
    """300 of 4,000 pairs are labelled; the AI is surer of itself than it should be."""
    covered, widths, alone = 0, [], []
    for seed in range(100):
        generator = np.random.default_rng(seed)
        true = generator.uniform(0.5, 1.0, 4000)
        confidence = np.clip(true * 1.1, 0, 1)
        right = (generator.random(4000) < true).astype(float)
        ids = [content_id(number) for number in range(4000)]
        found = draw(ids, confidence, np.ones(4000), 300, strategy, seed=seed)
        result = dataset_accuracy(
            right[found.index], confidence[found.index], confidence, found.inclusion
        )
        covered += result.estimate.low <= right.mean() <= result.estimate.high
        widths.append(result.estimate.high - result.estimate.low)
        alone.append(result.by_people_alone.high - result.by_people_alone.low)
    assert covered >= 89  # 95 expected; fewer than 89 has a probability of 1 %
    if strategy == "random":
        assert np.mean(widths) < np.mean(alone)


def test_confidences_that_know_make_it_tighter() -> None:
    generator = np.random.default_rng(0)
    right = (generator.random(5000) < 0.8).astype(float)
    knows = np.where(right == 1, 0.95, 0.55)
    result = dataset_accuracy(right[:200], knows[:200], knows)
    assert result.estimate.low <= right.mean() <= result.estimate.high
    width = result.estimate.high - result.estimate.low
    assert width < 0.4 * (result.by_people_alone.high - result.by_people_alone.low)


@pytest.mark.parametrize("same", [0.9, 0.5, 1 / 3])
def test_equal_confidences_leave_the_labels_of_people(same: float) -> None:
    right = np.array([1.0] * 28 + [0.0] * 12)
    result = dataset_accuracy(right, np.full(40, same), np.full(100, same + 1e-12))
    assert result.estimate == result.by_people_alone
    assert result.estimate.value == pytest.approx(0.7)
    assert 0 < result.estimate.low < 0.7 < result.estimate.high < 1


def test_few_labels_and_full_agreement() -> None:
    with pytest.raises(LabelerError, match="people labelled 19"):
        dataset_accuracy(np.ones(19), np.ones(19), np.ones(100))
    # 20 of 20: Wilson's interval is 20 / (20 + 1.96^2) to 1.
    all_right = dataset_accuracy(np.ones(20), np.full(20, 0.9), np.full(100, 0.9)).estimate
    assert (all_right.value, all_right.high) == (1.0, pytest.approx(1.0))
    assert all_right.low == pytest.approx(20 / (20 + 1.96**2), abs=1e-3)
    with pytest.raises(ValueError, match="cannot draw 0 of 1 pairs"):
        draw(["x"], [0.5], [1.0], 0, "random", seed=0)


def test_pairs_of_one_prompt_widen_the_estimate():
    draw = np.random.default_rng(5)
    knows = np.round(draw.uniform(0.5, 1, 60), 2)
    right = (draw.random(60) < knows).astype(float)
    alone = dataset_accuracy(right, knows, knows)
    prompts = np.repeat(np.arange(60), 5)
    several = [np.repeat(one, 5) for one in (right, knows, knows)]
    clustered, naive = dataset_accuracy(*several, prompts=prompts), dataset_accuracy(*several)
    for name in ("estimate", "by_people_alone"):
        one, five, hundreds = (getattr(found, name) for found in (alone, clustered, naive))
        assert five.value == pytest.approx(one.value, abs=0.01)
        assert five.high - five.low == pytest.approx(one.high - one.low, rel=0.1)
        assert five.high - five.low > 2 * (hundreds.high - hundreds.low)
    all_right = dataset_accuracy(np.ones(40), np.full(40, 0.9), knows, prompts=np.arange(40) // 2)
    assert all_right.estimate.low < dataset_accuracy(np.ones(40), knows[:40], knows).estimate.low
