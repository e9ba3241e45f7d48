"""Whether chosen answers are longer, by hand."""

import numpy as np
import pytest
from scipy.stats import spearmanr

from prefloop.labelers.statistics.length_bias import length_bias


def test_length_bias_by_hand() -> None:
    # Differences 2, -1, 3, 0: two of three unequal pairs have the longer chosen answer. Ranks of
    # 2, 1, 3 are 2, 1, 3: (2 + 3 - 1) / 6.
    chosen, rejected = np.array([5, 2, 9, 4]), np.array([3, 3, 6, 4])
    found = length_bias("words", chosen, rejected)
    assert found is not None
    assert (found.chosen_longer, found.rejected_longer, found.equal) == (2, 1, 1)
    assert found.share == pytest.approx(2 / 3)
    assert found.rank_biserial == pytest.approx(4 / 6)
    expected = spearmanr(np.concatenate([chosen, rejected]), [1, 1, 1, 1, 0, 0, 0, 0]).statistic
    assert found.rank_correlation == pytest.approx(expected)
    assert found.words == "no clear length bias"
    shorter = length_bias("words", np.full(50, 3), np.full(50, 9))
    assert shorter is not None
    assert (shorter.words, shorter.rank_biserial) == ("chosen answers are shorter", -1.0)
    equal = length_bias("words", np.full(5, 3), np.full(5, 3))
    assert equal is not None
    assert (equal.share, equal.rank_correlation, equal.words) == (
        None, None, "no pair of unequal length",
    )  # fmt: skip


def test_pairs_of_one_prompt_count_once() -> None:
    chosen, rejected = np.array([3, 5, 9, 2, 8]), np.array([1, 1, 1, 7, 7])
    prompts = np.array([11, 12, 13, 14, 15], np.uint64)
    alone = length_bias("words", chosen, rejected)
    several = length_bias("words", np.tile(chosen, 4), np.tile(rejected, 4), np.tile(prompts, 4))
    assert alone is not None
    assert several is not None
    assert (several.low, several.high) == pytest.approx((alone.low, alone.high))
