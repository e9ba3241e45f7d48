"""Groups side by side: figures by hand, the test against exact ones, and how often it errs."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import fisher_exact
from statsmodels.stats.multitest import multipletests

from prefloop.labelers.statistics.groups import compare_groups, group_chances, holm
from prefloop.labelers.statistics.winrate import win_rate


def test_figures_by_hand() -> None:
    right = [1, 1, 0, 0.5, 1, 0]
    longer = [1, 0, 0, 1, 0.5, 1]
    groups = ["x", "x", "x", "y", "y", "y"]
    x, y = compare_groups(right, longer, groups, draws=99)
    assert (x.group, y.group) == ("x", "y")
    assert x.share == win_rate([1, 1, 0])
    assert x.baseline == win_rate([1, 0, 0])
    assert x.difference.value == pytest.approx(1 / 3)
    assert y.difference.value == pytest.approx(-1 / 3)
    halves = win_rate([0.5, 1, 0.5])
    assert x.difference.low == pytest.approx(2 * halves.low - 1)
    assert x.difference.high == pytest.approx(2 * halves.high - 1)
    assert x.share.n == x.difference.n == 3


def test_one_group_has_no_rest() -> None:
    [only] = compare_groups([1, 0], [0, 0], ["x", "x"])
    assert (only.p, only.p_holm) == (None, None)


@pytest.mark.parametrize(("inside", "outside"), [((4, 6), (17, 3)), ((8, 0), (10, 9))])
def test_independent_observations_give_fishers_test(
    inside: tuple[int, int], outside: tuple[int, int]
) -> None:
    right = [1] * inside[0] + [0] * inside[1] + [1] * outside[0] + [0] * outside[1]
    groups = ["in"] * sum(inside) + ["out"] * sum(outside)
    found = compare_groups(right, right, groups)[0]
    one_sided = [
        fisher_exact([inside, outside], alternative=side).pvalue for side in ("less", "greater")
    ]
    assert found.p is not None
    assert min(one_sided) - 0.01 < found.p < 2 * min(one_sided) + 0.01
    assert found.p_holm == pytest.approx(min(1.0, 2 * found.p))


def test_many_pairs_of_one_prompt_are_one_chance() -> None:
    """All of a prompt's 20 pairs are won or lost together: that is no more than one of them."""
    right = np.repeat([0.0, 1.0, 1.0, 1.0, 1.0, 0.0], 20)
    groups = np.repeat(["x", "y", "y", "y", "y", "y"], 20).tolist()
    prompts = np.repeat(np.arange(6), 20)
    alone, together = group_chances(right, groups), group_chances(right, groups, prompts)
    assert alone is not None
    assert alone[0][0] < 0.001
    assert together is not None
    assert together[0][0] > 0.2


def test_prompts_with_pairs_of_every_group_are_compared_within() -> None:
    """Every prompt is half as hard for x as for y, whatever its own difficulty."""
    prompts = np.repeat(np.arange(40), 4)
    groups = ["x", "x", "y", "y"] * 40
    right = np.tile([1.0, 1.0, 0.0, 1.0], 40)
    right[:80] = np.tile([1.0, 0.0, 0.0, 0.0], 20)
    found = compare_groups(right, right, groups, prompts)
    assert found[0].p == found[1].p
    assert found[0].p is not None
    assert found[0].p < 0.001


@pytest.mark.parametrize("seed", range(5))
def test_holm_is_that_of_statsmodels(seed: int) -> None:
    p = np.random.default_rng(seed).integers(1, 9, 7) / 100
    assert holm(p) == pytest.approx(multipletests(p, method="holm")[1])


@pytest.mark.parametrize("crossed", [False, True])
@pytest.mark.parametrize("accuracy", [0.6, 0.95])
def test_where_no_group_differs_few_tables_say_that_one_does(
    accuracy: float, crossed: bool
) -> None:
    """Family-wise: prompts of one to four pairs that tend to be alike, in groups of very unequal
    size. 0.05, and three standard errors of 400 tables."""
    draw = np.random.default_rng(int(100 * accuracy) + crossed)
    prompts = np.repeat(np.arange(60), np.resize([1, 4, 2, 3], 60))
    sizes = np.repeat(["a", "b", "c", "d", "e"], [30, 15, 8, 4, 3])
    said = 0
    for _ in range(400):
        groups = draw.permutation(sizes)[prompts]
        if crossed:
            groups = np.where(draw.random(len(prompts)) < 0.5, draw.permutation(groups), groups)
        alike = draw.random(60)[prompts]
        own = draw.random(len(prompts))
        right = (np.where(draw.random(len(prompts)) < 0.6, alike, own) < accuracy).astype(float)
        found = group_chances(right, groups.tolist(), prompts, draws=199)
        assert found is not None
        said += bool((found[1] <= 0.05).any())
    assert said / 400 <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / 400)


def test_a_group_that_differs_is_found() -> None:
    draw = np.random.default_rng(5)
    groups = ["easy"] * 200 + ["hard"] * 60 + ["other"] * 140
    right = (draw.random(400) < np.repeat([0.85, 0.5, 0.85], [200, 60, 140])).astype(float)
    found = {one.group: one for one in compare_groups(right, np.zeros(400), groups)}
    assert found["hard"].p_holm is not None
    assert found["hard"].p_holm < 0.01
    assert found["hard"].difference.value == found["hard"].share.value
