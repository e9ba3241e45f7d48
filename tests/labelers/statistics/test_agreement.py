"""Agreement statistics against textbook tables, by hand, and against the libraries."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prefloop.labelers.statistics.agreement import (
    MISSING,
    NO_COMMON_ITEM,
    NO_PAIRS,
    ONE_LABEL,
    Ratings,
    _alpha,
    cohen_kappa,
    cohen_kappas,
    fleiss_kappa,
    krippendorff_alpha,
    majority,
    raw_agreement,
    unanimous_share,
)
from prefloop.labelers.statistics.clusters import renumbered
from prefloop.labelers.statistics.estimate import wilson


def ratings(codes: list[list[int]] | np.ndarray, labels: int, **more) -> Ratings:
    """Labels 0, 1, 2, ... in ascending order; -1 is missing. A list for each item."""
    table = np.array(codes)
    names = tuple(map(str, range(labels)))
    annotators = tuple("ABCDEFGHIJKLMNOP"[: table.shape[1]])
    values = np.arange(labels, dtype=float)
    return Ratings(annotators, names, table, values, ordered=True, **more)


def from_table(table: list[list[int]]) -> Ratings:
    """Two annotators from the counts of their pairs of labels; rows are the first's."""
    codes = [
        [row, column]
        for row, line in enumerate(table)
        for column, count in enumerate(line)
        for _ in range(count)
    ]
    return ratings(codes, len(table))


def from_counts(counts: list[list[int]]) -> Ratings:
    """Items with these counts of labels, whoever gave them."""
    codes = [[k for k, times in enumerate(row) for _ in range(times)] for row in counts]
    return ratings(codes, len(counts[0]))


# Krippendorff 2011, section C: twelve items, four observers, labels 1 to 5.
FOUR_OBSERVERS = (
    np.array(
        [
            [1, 2, 3, 3, 2, 1, 4, 1, 2, 0, 0, 0],
            [1, 2, 3, 3, 2, 2, 4, 1, 2, 5, 0, 3],
            [0, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, 0],
            [1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, 0],
        ]
    ).T
    - 1
)

# Fleiss 1971 as Wikipedia's example: ten subjects, fourteen raters, five categories.
FOURTEEN_RATERS = [
    [0, 0, 0, 0, 14], [0, 2, 6, 4, 2], [0, 0, 3, 5, 6], [0, 3, 9, 2, 0], [2, 2, 8, 1, 1],
    [7, 7, 0, 0, 0], [3, 2, 6, 3, 0], [2, 5, 3, 2, 2], [6, 5, 2, 1, 0], [0, 2, 2, 3, 7],
]  # fmt: skip


def test_cohen_by_hand() -> None:
    # Both say yes 20 times, both no 15 times, of 50: 0.7 observed. By chance 25/50 x 30/50 for yes
    # and 25/50 x 20/50 for no: 0.3 + 0.2 = 0.5. (0.7 - 0.5) / (1 - 0.5) = 0.4.
    found = cohen_kappa(from_table([[20, 5], [10, 15]]), 0, 1)
    assert found.value == pytest.approx(0.4)
    assert found.n == 50
    # Cohen's large-sample standard error is sqrt(0.7 x 0.3 / (50 x 0.25)) = 0.13.
    assert found.low == pytest.approx(0.4 - 1.96 * 0.13, abs=0.04)
    assert found.high == pytest.approx(0.4 + 1.96 * 0.13, abs=0.04)


@pytest.mark.parametrize(("weights", "expected"), [("linear", 34 / 58), ("quadratic", 48 / 88)])
def test_weighted_kappa_by_hand(weights: str, expected: float) -> None:
    # Rows 3, 2, 3 and columns 3, 3, 2 of 8. One item is one place apart, one is two places: 3 / 8
    # linear, 5 / 8 quadratic. By chance (21 + 10 + 27) / 64 and (33 + 10 + 45) / 64.
    found = cohen_kappa(from_table([[2, 1, 0], [0, 2, 0], [1, 0, 2]]), 0, 1, weights=weights)
    assert found.value == pytest.approx(expected)
    assert found.low < found.value < found.high


def test_a_label_that_nobody_used_keeps_its_place() -> None:
    # Of 0 to 3, where nobody said 2: 1 and 3 are two places apart.
    table = from_table([[3, 1, 0, 0], [0, 3, 0, 2], [0, 0, 0, 0], [1, 0, 0, 3]])
    one, other = table.codes.T
    kappa = cohen_kappa(table, 0, 1, weights="linear").value
    apart = np.abs(one - other).mean() / np.abs(one[:, None] - other).mean()
    assert kappa == pytest.approx(1 - apart)


def test_weights_need_an_order() -> None:
    words = Ratings(("A", "B"), ("no", "yes"), np.array([[0, 1], [1, 1]]))
    with pytest.raises(ValueError, match="no order"):
        cohen_kappa(words, 0, 1, weights="linear")


def test_fleiss_by_hand() -> None:
    # Column sums 20, 28, 39, 21, 32 of 140: sum of squared shares 0.2128. The items agree in 1,
    # .253, .308, .440, .330, .462, .242, .176, .286, .286 of their 91 pairs: mean 0.378.
    # (0.378 - 0.213) / (1 - 0.213) = 0.210.
    found = fleiss_kappa(from_counts(FOURTEEN_RATERS))
    assert found.value == pytest.approx(0.210, abs=5e-4)
    assert found.n == 10
    assert raw_agreement(from_counts(FOURTEEN_RATERS)).value == pytest.approx(0.378, abs=5e-4)


@pytest.mark.parametrize(
    ("level", "expected"), [("nominal", 0.743), ("ordinal", 0.815), ("interval", 0.849)]
)
def test_krippendorff_by_hand(level: str, expected: float) -> None:
    # 11 items have two labels or more, 40 labels in all. Coincidences on the diagonal: 7, 10, 8, 4,
    # 3 of n = 40; marginals 9, 13, 10, 5, 3. Nominal: 1 - (40 - 32) / ((40^2 - 384) / 39) = 0.743.
    found = krippendorff_alpha(ratings(FOUR_OBSERVERS, 5), level)
    assert found.value == pytest.approx(expected, abs=5e-4)
    assert found.n == 11
    assert found.low < found.value < found.high


@settings(max_examples=40, deadline=None)
@given(
    table=st.lists(st.lists(st.integers(-1, 3), min_size=3, max_size=3), min_size=2, max_size=25)
)
def test_what_resamples_are_computed_with_equals_the_libraries(table: list[list[int]]) -> None:
    given_ratings = ratings(table, 4)
    counts = given_ratings.counts
    counts = counts[counts.sum(axis=1) >= 2]
    for level in ("nominal", "ordinal", "interval", "ratio"):
        found = krippendorff_alpha(given_ratings, level, resamples=1)
        if found.value is not None:
            patterns, times = np.unique(counts, axis=0, return_counts=True)
            own = _alpha(patterns, times.astype(float), np.arange(4.0), level)
            assert own == pytest.approx(found.value)
    # One item alone: every resample is that item, so the interval would have to be the value.
    for function in (raw_agreement, unanimous_share):
        found = function(given_ratings, resamples=20)
        assert found.value is None or found.low is None or found.low <= found.value + 1e-9


def test_alpha_of_ratios_by_hand() -> None:
    # Krippendorff 2011, section E: the same items with their labels 1 to 5 as amounts.
    table = replace(ratings(FOUR_OBSERVERS, 5), values=np.arange(1.0, 6.0))
    assert krippendorff_alpha(table, "ratio").value == pytest.approx(0.797, abs=5e-4)


@pytest.mark.parametrize("more", [{"values": np.arange(-1.0, 2.0)}, {"mirrored": True}])
def test_amounts_have_ratios_only(more) -> None:
    table = replace(ratings([[0, 1], [1, 1], [2, 2]], 3), **more)
    with pytest.raises(ValueError, match="no ratio"):
        krippendorff_alpha(table, "ratio")


def test_kappas_of_resamples_equal_the_libraries() -> None:
    # Items that are all alike but for their number: resampling N identical pairs of items changes
    # nothing, so low and high are the library's value.
    balanced = from_table([[1, 0], [0, 1]])
    assert cohen_kappa(balanced, 0, 1).value == 1.0
    draw = np.random.default_rng(0)
    table = ratings(draw.integers(0, 3, (4000, 3)), 3)
    for found in (cohen_kappa(table, 0, 1), fleiss_kappa(table), krippendorff_alpha(table)):
        assert found.low < found.value < found.high
        assert np.mean([found.low, found.high]) == pytest.approx(found.value, abs=0.005)


def test_the_interval_covers_the_truth() -> None:
    # Two annotators, right with 0.8 on two equally frequent labels, agree in 0.68: kappa 0.36.
    covered = 0
    for seed in range(60):
        draw = np.random.default_rng(seed)
        truth = draw.integers(0, 2, 150)
        codes = np.where(draw.random((150, 2)) < 0.8, truth[:, None], 1 - truth[:, None])
        found = cohen_kappa(ratings(codes, 2), 0, 1, resamples=400, seed=seed)
        covered += found.low <= 0.36 <= found.high
    assert covered >= 52  # of 57 expected; fewer than 52 has a probability of 0.5 %


def test_raters_without_a_common_item_are_reported() -> None:
    table = ratings([[0, MISSING, 0], [MISSING, 1, 1], [1, MISSING, 1]], 2)
    found = cohen_kappas(table)
    assert found["A", "B"].value is None
    assert found["A", "B"].reason == NO_COMMON_ITEM
    assert found["A", "C"].value == 1.0
    assert found["B", "C"].reason == ONE_LABEL


def test_one_label_is_defined() -> None:
    table = ratings([[1, 1, 1]] * 5, 3)
    assert raw_agreement(table).value == unanimous_share(table).value == 1.0
    for found in (cohen_kappa(table, 0, 1), fleiss_kappa(table), krippendorff_alpha(table)):
        assert (found.value, found.low, found.high) == (None, None, None)
        assert found.reason == ONE_LABEL
        assert found.n == 5


def test_resamples_of_one_label_are_counted_and_left_out() -> None:
    # 9 of 10 items have only label 0: a resample misses the tenth with probability .9^10 = 0.35.
    found = cohen_kappa(ratings([[0, 0]] * 9 + [[1, 1]], 2), 0, 1, resamples=2000)
    assert found.value == 1.0
    assert found.undefined / 2000 == pytest.approx(0.9**10, abs=0.04)
    # All items agree, and yet ten of them cannot say that all others do.
    assert found.low < 0.0
    assert found.high == 1.0


STATISTICS = {
    "raw": raw_agreement,
    "unanimous": unanimous_share,
    "fleiss": fleiss_kappa,
    "alpha": krippendorff_alpha,
    "cohen": lambda ratings, **more: cohen_kappa(ratings, 0, 1, **more),
}


@pytest.mark.parametrize("name", STATISTICS)
@pytest.mark.parametrize("of_a_prompt", [1, 4])
def test_the_interval_covers_the_truth_where_few_items_disagree(name: str, of_a_prompt: int):
    """20 prompts with items that two annotators label alike, or not, all at once: in 0.95 of them,
    so that a third of such samples shows no disagreement at all."""
    covered = 0
    for seed in range(100):
        draw = np.random.default_rng(seed)
        first, same = draw.integers(0, 2, 20), draw.random(20) < 0.95
        codes = np.repeat(np.stack([first, np.where(same, first, 1 - first)], 1), of_a_prompt, 0)
        table = ratings(codes, 2, prompts=np.repeat(np.arange(20), of_a_prompt))
        found = STATISTICS[name](table, resamples=200, seed=seed)
        covered += found.low <= (0.95 if name in ("raw", "unanimous") else 0.9) <= found.high
    assert covered >= 88  # 95 of 100 expected; fewer than 88 has a probability of 0.2 %


@pytest.mark.parametrize("statistic", [cohen_kappa, krippendorff_alpha])
def test_ordered_labels_that_always_agree_have_an_interval_with_width(statistic):
    table = ratings([[one, one] for one in range(5)] * 4, 5)
    how = (0, 1) if statistic is cohen_kappa else ("ordinal",)
    more = {"weights": "quadratic"} if statistic is cohen_kappa else {}
    found = statistic(table, *how, **more)
    # As for labels without an order: the score interval of 20 of 20, above chance.
    assert found.value == found.high == 1.0
    assert found.low == pytest.approx(1 - (1 - wilson(1.0, 20)[0]) / 0.8, abs=0.01)


def test_many_annotators_do_not_widen_the_interval() -> None:
    """Shares of equal labels of ten annotators vary less than a coin does."""
    draw = np.random.default_rng(0)
    truth = draw.integers(0, 2, 300)
    codes = np.where(draw.random((300, 10)) < 0.7, truth[:, None], 1 - truth[:, None])
    found = raw_agreement(ratings(codes, 2))
    counts = np.stack([(codes == label).sum(1) for label in (0, 1)], 1)
    error = ((counts * (counts - 1)).sum(1) / 90).std(ddof=1) / np.sqrt(300)
    assert found.high - found.low == pytest.approx(2 * 1.96 * error, rel=0.1)


def test_nothing_to_compare() -> None:
    table = ratings([[0, MISSING], [MISSING, 1]], 2)
    for found in (raw_agreement(table), unanimous_share(table), fleiss_kappa(table)):
        assert found.reason == NO_PAIRS
    assert krippendorff_alpha(table).reason == NO_PAIRS
    one_item = raw_agreement(ratings([[0, 1]], 2))
    assert (one_item.value, one_item.low, one_item.n) == (0.0, None, 1)


def test_majorities_are_counted_without_breaking_ties() -> None:
    table = ratings(
        [[0, 0, 1], [0, 1, MISSING], [2, 2, 2], [MISSING] * 3, [1, MISSING, MISSING]], 3
    )
    found = majority(table)
    assert found.counts == {"0": 1, "1": 1, "2": 1}
    assert (found.none, found.unlabelled) == (1, 1)


def test_fleiss_takes_the_items_with_the_usual_number_of_labels() -> None:
    complete = ratings([[0, 0, 1], [1, 1, 1], [0, 0, 0]], 2)
    mixed = ratings([[0, 0, 1], [1, 1, 1], [0, 0, 0], [0, 1, MISSING], [1, MISSING, MISSING]], 2)
    assert fleiss_kappa(mixed).value == fleiss_kappa(complete).value
    assert fleiss_kappa(mixed).n == 3


def test_levels_that_the_labels_do_not_have() -> None:
    words = Ratings(("A", "B"), ("no", "yes"), np.array([[0, 1], [1, 1]]))
    with pytest.raises(ValueError, match="no numbers"):
        krippendorff_alpha(words, "interval")
    with pytest.raises(ValueError, match="no order"):
        krippendorff_alpha(words, "ordinal")


def test_intervals_are_reproducible() -> None:
    table = ratings(FOUR_OBSERVERS, 5)
    assert krippendorff_alpha(table, seed=1) == krippendorff_alpha(table, seed=1)
    assert krippendorff_alpha(table, seed=1) != krippendorff_alpha(table, seed=2)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(st.tuples(*[st.integers(-1, 2)] * 3), st.booleans()), min_size=3, max_size=40
    )
)
def test_mirrored_figures_know_nothing_of_which_label_is_which(rows) -> None:
    """Turn any items round, as another seed calls the other answer a: every figure stays."""
    codes = np.array([row for row, _ in rows])
    turn = np.array([turned for _, turned in rows])[:, None] & (codes != MISSING)
    one, other = (
        ratings(each, 3, mirrored=True) for each in (codes, np.where(turn, 2 - codes, codes))
    )
    figures = [
        (raw_agreement(found, resamples=9), unanimous_share(found, resamples=9),
         *cohen_kappas(found, resamples=9).values(),
         *cohen_kappas(found, weights="linear", resamples=9).values(),
         fleiss_kappa(found, resamples=9),
         *(krippendorff_alpha(found, level, resamples=9)
           for level in ("nominal", "ordinal", "interval")))
        for found in (one, other)
    ]  # fmt: skip
    for mine, theirs in zip(*figures, strict=True):
        assert mine.as_dict() == pytest.approx(theirs.as_dict(), nan_ok=True)


def test_mirrored_figures_are_those_of_items_counted_both_ways() -> None:
    codes = np.array([[0, 0], [0, 2], [1, 0], [0, 0], [2, 2], [1, 1], [0, 1]])
    once = ratings(codes, 3, mirrored=True)
    twice = ratings(np.concatenate([codes, 2 - codes]), 3)
    assert cohen_kappa(once, 0, 1).value == pytest.approx(cohen_kappa(twice, 0, 1).value)
    assert fleiss_kappa(once).value == pytest.approx(fleiss_kappa(twice).value)
    n = 2 * len(codes)  # alpha corrects for the number of labels, which is not doubled
    for level in ("nominal", "ordinal", "interval"):
        mine, theirs = (krippendorff_alpha(each, level).value for each in (once, twice))
        assert (1 - mine) / (1 - theirs) == pytest.approx((n - 1) / n * 2 * n / (2 * n - 1))
    assert cohen_kappa(once, 0, 1).high > cohen_kappa(twice, 0, 1).high  # as many items as before


@pytest.mark.parametrize(
    "statistic",
    [raw_agreement, unanimous_share, fleiss_kappa, krippendorff_alpha,
     lambda ratings: cohen_kappa(ratings, 0, 1)],
)  # fmt: skip
def test_items_of_one_prompt_are_drawn_together(statistic):
    draw = np.random.default_rng(3)
    first = draw.integers(0, 3, 40)
    second = np.where(draw.random(40) < 0.7, first, draw.integers(0, 3, 40))
    codes = np.stack([first, second], axis=1)
    alone = Ratings(("x", "y"), ("a", "b", "c"), codes)
    repeated = Ratings(
        ("x", "y"), ("a", "b", "c"), np.repeat(codes, 5, axis=0),
        prompts=[f"p{row}" for row in range(40) for _ in range(5)],
    )  # fmt: skip
    naive = replace(repeated, prompts=None)
    one, five, hundreds = (statistic(ratings) for ratings in (alone, repeated, naive))
    assert five.value == pytest.approx(one.value, abs=0.01)
    assert five.high - five.low == pytest.approx(one.high - one.low, rel=0.15)
    assert five.high - five.low > 1.8 * (hundreds.high - hundreds.low)


def test_one_prompt_has_no_interval():
    codes = np.array([[0, 0], [1, 0], [1, 1]])
    found = raw_agreement(Ratings(("x", "y"), ("a", "b"), codes, prompts=["p"] * 3))
    assert (found.value, found.low, found.n) == (pytest.approx(2 / 3), None, 3)


@pytest.mark.parametrize("kind", [np.int8, np.int64])
def test_many_labels_fit_into_the_type_of_their_codes(kind: type[np.integer]) -> None:
    """The cells of two annotators' labels are numbered too: of 30 labels, 900."""
    draw = np.random.default_rng(0)
    first = draw.integers(0, 30, 200)
    codes = np.stack([first, np.where(draw.random(200) < 0.6, first, draw.integers(0, 30, 200))], 1)
    found = cohen_kappa(ratings(codes.astype(kind), 30), 0, 1)
    assert found == cohen_kappa(ratings(codes, 30), 0, 1)
    assert 0.45 < found.low < found.value < found.high < 0.65


def test_what_is_worked_out_for_like_items_once_is_that_of_each_item() -> None:
    """Also of more annotators and labels than likenesses can be numbered for."""
    draw = np.random.default_rng(1)
    for annotators, labels in ((2, 3), (5, 4), (16, 30)):
        codes = draw.integers(-1, labels, (60, annotators))
        codes[30:50] = codes[:20]
        found = ratings(codes, labels)
        assert (found.alike.codes[found.alike.number] == codes).all()
        assert found.alike.times.sum() == 60
        every = [[(row == label).sum() for label in range(labels)] for row in codes]
        assert (found.counts == np.array(every)).all()


def test_prompts_may_be_numbers_or_words() -> None:
    draw = np.random.default_rng(2)
    numbers = draw.integers(0, 40, 150)
    codes = draw.integers(-1, 3, (150, 3))
    one, other = (
        ratings(codes, 3, mirrored=True, prompts=prompts)
        for prompts in (numbers, [f"prompt {number}" for number in numbers.tolist()])
    )
    for statistic in (raw_agreement, unanimous_share, fleiss_kappa, krippendorff_alpha):
        assert statistic(one) == statistic(other)
    assert cohen_kappas(one) == cohen_kappas(other)


@given(
    st.lists(st.integers(0, 40), max_size=30) | st.lists(st.integers(-9, 10**12), max_size=30),
    st.sampled_from([np.int64, np.int32, np.float64]),
)
def test_numbers_are_those_of_a_sort(values: list[int], kind: type) -> None:
    array = np.array(values, np.int64)
    array = array % 2**31 if kind is np.int32 else array
    array = array.astype(kind)
    distinct, number = renumbered(array)
    expected, inverse = np.unique(array, return_inverse=True)
    assert distinct.tolist() == expected.tolist()
    assert number.tolist() == inverse.tolist()
