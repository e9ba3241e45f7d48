"""Win rates, their intervals, and the table that metrics are written as."""

import math

import numpy as np
import pytest

from prefloop.data import schemas
from prefloop.labelers.statistics.estimate import Estimate, mean_estimate
from prefloop.labelers.statistics.winrate import length_controlled_win_rate, length_gap, win_rate
from prefloop.pipeline.run.metrics import metrics_table


def test_one_win_or_loss_per_prompt_is_wilsons_interval():
    # 8 wins of 10, z = 1.959964, z^2 = 3.841459
    # centre = (0.8 + 3.841459/20) / (1 + 0.3841459) = 0.99207295 / 1.3841459 = 0.716740
    # half = 1.959964 * sqrt(0.16/10 + 3.841459/400) / 1.3841459
    #      = 1.959964 * sqrt(0.02560365) / 1.3841459 = 0.226577
    estimate = win_rate([1] * 8 + [0] * 2)
    assert estimate.value == 0.8
    assert estimate.low == pytest.approx(0.716740 - 0.226577, abs=1e-5)  # 0.4902
    assert estimate.high == pytest.approx(0.716740 + 0.226577, abs=1e-5)  # 0.9433
    assert estimate.n == 10


@pytest.mark.parametrize(("outcome", "low", "high"), [(1, 0.7225, 1.0), (0, 0.0, 0.2775)])
def test_all_won_or_all_lost_has_width_and_stays_inside(outcome, low, high):
    # n / (n + z^2) = 10 / 13.841459 = 0.722467
    estimate = win_rate([outcome] * 10)
    assert estimate.low == pytest.approx(low, abs=1e-4)
    assert estimate.high == pytest.approx(high, abs=1e-4)
    assert 0 <= estimate.low <= estimate.value <= estimate.high <= 1


def test_a_tie_is_half_a_win_and_carries_less_variance():
    # 2 wins, 4 ties, 2 losses of 8: at a difference d of the shares of wins and losses the
    # likeliest share of losses q solves 16 q^2 + (16 d - 4) q - 2 d (1 - d) = 0, and the end of the
    # interval d^2 = z^2 (2 q + d (1 - d)) / 8: d = 0.463491, q = 0.0870... (Tango 1998).
    estimate = win_rate([1, 1, 0.5, 0.5, 0.5, 0.5, 0, 0])
    assert estimate.value == 0.5
    d = 2 * estimate.high - 1
    b = 16 * d - 4
    lost = (math.sqrt(b * b + 128 * d * (1 - d)) - b) / 32
    assert d**2 == pytest.approx(1.959964**2 * (2 * lost + d * (1 - d)) / 8, rel=1e-6)
    assert estimate.low == pytest.approx(1 - estimate.high)
    without = win_rate([1, 1, 1, 1, 0, 0, 0, 0])
    assert estimate.high - estimate.low < 0.85 * (without.high - without.low)


def test_the_interval_is_that_of_tangos_score():
    """By the likelihood itself, maximised numerically at each end of the interval."""
    wins, ties, losses = 7, 20, 3
    estimate = win_rate([1] * wins + [0.5] * ties + [0] * losses)
    for end in (estimate.low, estimate.high):
        d = 2 * end - 1
        lost = np.linspace(max(0, -d) + 1e-9, (1 - d) / 2 - 1e-9, 2_000_001)
        tied = 1 - 2 * lost - d
        likely = wins * np.log(lost + d) + losses * np.log(lost) + ties * np.log(tied)
        q = lost[likely.argmax()]
        variance = (2 * q + d - d**2) / 30
        assert abs(4 / 30 - d) / math.sqrt(variance) == pytest.approx(1.959964, abs=1e-3)


def test_only_ties_is_one_half_with_an_interval():
    # At d the likeliest share of losses is 0: d^2 = z^2 d (1 - d) / n, d = z^2 / (n + z^2) = 0.3903
    estimate = win_rate([0.5] * 6)
    assert (estimate.value, estimate.n) == (0.5, 6)
    assert estimate.high == pytest.approx(0.5 + 0.3903 / 2, abs=1e-4)
    assert estimate.low == pytest.approx(0.5 - 0.3903 / 2, abs=1e-4)


def test_answers_that_agree_within_a_prompt_count_once():
    # 4 prompts, 5 equal outcomes each, 2 prompts won: worth 4 observations.
    outcomes = [1] * 5 + [0] * 5 + [1] * 5 + [0] * 5
    prompts = [p for p in "abcd" for _ in range(5)]
    clustered, naive = win_rate(outcomes, prompts), win_rate(outcomes)
    once = win_rate([1, 0, 1, 0])
    assert (clustered.low, clustered.high) == pytest.approx((once.low, once.high))
    assert clustered.high - clustered.low > 1.7 * (naive.high - naive.low)
    assert clustered.n == 20


def test_answers_of_a_prompt_that_cancel_count_in_full_and_no_more():
    outcomes, prompts = [1, 0] * 50, np.repeat(np.arange(50), 2)
    assert win_rate(outcomes, prompts).low == pytest.approx(win_rate(outcomes).low)


def test_independent_answers_of_a_prompt_count_in_full():
    generator = np.random.default_rng(0)
    outcomes = generator.integers(0, 2, 2000)
    prompts = np.repeat(np.arange(500), 4)
    clustered, naive = win_rate(outcomes, prompts), win_rate(outcomes)
    assert clustered.high - clustered.low == pytest.approx(naive.high - naive.low, rel=0.1)


def test_all_won_by_one_prompt_is_worth_one_observation():
    assert win_rate([1] * 9, ["p"] * 9) == Estimate(1.0, win_rate([1]).low, 1.0, 9)


SIZES = {"1": [1], "4": [4], "1 to 8": [1, 6, 3, 8, 5, 2, 7, 4]}


def draws(prompts, sizes, ties, rate, alike, times):
    """Outcomes [times, N] and their prompts [N]: of ``prompts``, whose answers are wins, ties or
    losses by the same shares, and equal to each other with the correlation ``alike``."""
    generator = np.random.default_rng([prompts, len(sizes), int(100 * (ties + rate + alike))])
    clusters = np.repeat(np.arange(prompts), np.resize(sizes, prompts))
    loss, not_won = (1 - ties) * (1 - rate), (1 - ties) * (1 - rate) + ties

    def outcomes(shape):
        uniform = generator.random(shape)
        return np.where(uniform < loss, 0.0, np.where(uniform < not_won, 0.5, 1.0))

    shared = outcomes((times, prompts))[:, clusters]
    copies = generator.random((times, len(clusters))) < math.sqrt(alike)
    return np.where(copies, shared, outcomes((times, len(clusters)))), clusters


def coverage(prompts, sizes, ties, alike, rates):
    """How often the interval has the true win rate, over all ``rates`` of the decided."""
    inside = []
    for rate in rates:
        rows, clusters = draws(prompts, sizes, ties, rate, alike, times=350 // len(rates))
        true = (1 - ties) * rate + ties / 2
        found = [win_rate(row, clusters) for row in rows]
        inside += [one.low <= true + 1e-9 and true - 1e-9 <= one.high for one in found]
    return float(np.mean(inside))


MIDDLE, EDGE = (0.5, 0.56, 0.62, 0.68, 0.74, 0.8, 0.86), (0.9, 0.92, 0.94, 0.96, 0.98, 0.99, 0.995)


@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("prompts", [6, 25])
def test_interval_covers_the_truth_as_often_as_it_says(prompts, sizes):
    cells = [
        coverage(prompts, SIZES[sizes], ties, alike, rates)
        for ties in (0.0, 0.4, 0.9)
        for alike in ((0.0, 0.8) if sizes != "1" else (0.0,))
        for rates in (MIDDLE, EDGE)
    ]
    assert np.mean(cells) >= 0.94
    # Of 350 draws each: 0.94 less three standard errors of the simulation.
    assert min(cells) >= 0.902


def test_power_with_ties_is_what_it_can_be():
    # 150 prompts, 40 % ties, a win rate of 0.558: an ideal test finds it 46 times in 100
    # (0.058 / sqrt((0.6 / 4 - 0.058^2) / 150) = 1.86 standard errors); as if ties carried the
    # variance of a coin it was 24.
    rows, _ = draws(150, [1], ties=0.4, rate=0.5 + 0.058 / 0.6, alike=0.0, times=1500)
    power = np.mean([win_rate(row).low > 0.5 for row in rows])
    assert power == pytest.approx(0.46, abs=0.04)
    level = np.mean([win_rate(row).low > 0.5 for row in draws(150, [1], 0.4, 0.5, 0.0, 1500)[0]])
    assert level <= 0.035


@pytest.mark.parametrize(
    ("outcomes", "clusters"),
    [([], None), ([1, 2], None), ([1, math.nan], None), ([-0.5], None), ([1, 0], ["p"])],
)
def test_unusable_outcomes_are_refused(outcomes, clusters):
    with pytest.raises(ValueError, match=r"comparison|outcome|clusters"):
        win_rate(outcomes, clusters)


def simulate(theta, phi, n, *, mean_length, seed):
    """Outcomes and length differences drawn from AlpacaEval's model itself."""
    generator = np.random.default_rng(seed)
    difference = generator.normal(mean_length, 40, n)
    logit = theta + phi * np.tanh(difference / difference.std())
    return (generator.random(n) < 1 / (1 + np.exp(-logit))).astype(float), difference


def test_length_control_finds_the_effect_that_length_hides():
    # A policy that loses at equal length (sigma(-0.4) = 0.401) but writes longer, for a judge
    # that likes length: its raw win rate is above one half.
    outcomes, difference = simulate(-0.4, 2.0, 6000, mean_length=40, seed=2)
    controlled = length_controlled_win_rate(outcomes, difference)
    assert outcomes.mean() > 0.6
    assert controlled.value == pytest.approx(0.401, abs=0.03)
    assert controlled.low < 0.401 < controlled.high
    assert controlled.high - controlled.low < 0.1


def test_length_control_changes_nothing_where_length_plays_no_part():
    outcomes, difference = simulate(0.8, 0.0, 4000, mean_length=0, seed=3)
    controlled = length_controlled_win_rate(outcomes, difference)
    assert controlled.value == pytest.approx(outcomes.mean(), abs=0.01)


def test_length_control_interval_covers_the_truth():
    covered = 0
    for seed in range(150):
        outcomes, difference = simulate(0.3, 1.0, 200, mean_length=20, seed=seed)
        estimate = length_controlled_win_rate(outcomes, difference)
        covered += estimate.low <= 1 / (1 + math.exp(-0.3)) <= estimate.high
    assert 0.9 <= covered / 150 <= 1


@pytest.mark.parametrize(("prompts", "alike"), [(12, 0.0), (12, 0.8), (60, 0.5)])
@pytest.mark.parametrize("ties", [0.0, 0.5])
def test_length_control_covers_with_ties_and_several_answers(prompts, alike, ties):
    rows, clusters = draws(prompts, [4, 2, 1], ties, rate=0.6, alike=alike, times=200)
    lengths = np.random.default_rng(8).normal(5, 40, len(clusters))
    true = 0.6 * (1 - ties) + ties / 2
    found = [length_controlled_win_rate(row, lengths, clusters) for row in rows]
    assert np.mean([one.low <= true <= one.high for one in found]) >= 0.92


def test_length_control_is_narrower_with_ties_and_never_without_width():
    difference = np.linspace(-30, 40, 100)
    decided = length_controlled_win_rate([1, 0] * 50, difference)
    tied = length_controlled_win_rate([1, 0.5, 0, 0.5] * 25, difference)
    assert tied.high - tied.low == pytest.approx(
        math.sqrt(0.5) * (decided.high - decided.low), rel=0.05
    )
    only = length_controlled_win_rate([0.5] * 6, np.arange(6.0))
    assert only.low < 0.35
    assert only.high > 0.65


def test_length_gap_is_in_standard_deviations():
    assert length_gap([10, 30, 10, 30]) == 2
    assert length_gap([-10, 10]) == 0
    assert length_gap([4, 4, 4]) == 0


def test_length_control_widens_for_answers_to_one_prompt():
    outcomes, difference = simulate(0.3, 1.0, 100, mean_length=20, seed=4)
    repeated, lengths = np.repeat(outcomes, 4), np.repeat(difference, 4)
    prompts = np.repeat(np.arange(100), 4)
    clustered = length_controlled_win_rate(repeated, lengths, prompts)
    naive = length_controlled_win_rate(repeated, lengths)
    assert clustered.value == naive.value
    assert clustered.high - clustered.low > 1.7 * (naive.high - naive.low)


@pytest.mark.parametrize("outcome", [0.0, 1.0])
def test_length_control_of_one_sided_outcomes_is_finite_and_near_the_edge(outcome):
    estimate = length_controlled_win_rate([outcome] * 40, np.arange(40.0) - 20)
    assert abs(estimate.value - outcome) < 0.05
    assert 0 < estimate.low < estimate.high < 1
    assert estimate.high - estimate.low > 0.02
    fewer = length_controlled_win_rate(
        [outcome] * 40, np.arange(40.0) - 20, np.repeat(np.arange(4), 10)
    )
    assert fewer.high - fewer.low > estimate.high - estimate.low


def test_length_control_survives_separation_by_length():
    difference = np.array([-3.0, -2, -1, 1, 2, 3] * 5)
    estimate = length_controlled_win_rate(difference > 0, difference)
    assert estimate.value == pytest.approx(0.5, abs=1e-6)
    assert estimate.low < 0.45
    assert estimate.high > 0.55


def test_length_control_with_equal_lengths_is_the_win_rate_slightly_shrunk():
    # Four pseudo-observations of 1/4: (12 + 0.5) / (16 + 1)
    estimate = length_controlled_win_rate([1] * 12 + [0] * 4, [0] * 16)
    assert estimate.value == pytest.approx(12.5 / 17, abs=1e-6)


def test_length_control_refuses_what_it_cannot_tell_apart():
    with pytest.raises(ValueError, match="length cannot be controlled"):
        length_controlled_win_rate([1, 0, 1], [5, 5, 5])
    with pytest.raises(ValueError, match="length differences"):
        length_controlled_win_rate([1, 0], [5])
    with pytest.raises(ValueError, match="at least one comparison"):
        length_controlled_win_rate([], [])


def test_mean_has_students_interval():
    # 1..5: mean 3, sd 1.581139, t(0.975, 4) = 2.776445, half = 2.776445 * 1.581139 / sqrt(5)
    estimate = mean_estimate([1, 2, 3, 4, 5])
    assert estimate.value == 3
    assert estimate.high == pytest.approx(3 + 1.963243, abs=1e-5)
    assert mean_estimate([2.0]).high == math.inf
    with pytest.raises(ValueError, match="at least one"):
        mean_estimate([])
    with pytest.raises(ValueError, match="1 of 2 are not finite"):
        mean_estimate([1, math.inf])


def test_a_mean_of_equal_clusters_is_that_of_their_means():
    clustered = mean_estimate([1, 3, 2, 2, 6, 4], ["p", "p", "q", "q", "r", "r"])
    alone = mean_estimate([2, 2, 5])
    assert (clustered.value, clustered.low, clustered.high) == pytest.approx(
        (alone.value, alone.low, alone.high)
    )
    assert clustered.n == 6
    assert mean_estimate([1, 2, 3], ["p"] * 3).high == math.inf
    with pytest.raises(ValueError, match="3 observations but 1 clusters"):
        mean_estimate([1, 2, 3], ["p"])


@pytest.mark.parametrize("sizes", ["4", "1 to 8"])
@pytest.mark.parametrize("prompts", [5, 16])
@pytest.mark.parametrize("alike", [0.0, 0.5, 0.9])
def test_the_interval_of_a_mean_covers_it_with_few_prompts(prompts, sizes, alike):
    generator = np.random.default_rng(5)
    clusters = np.repeat(np.arange(prompts), np.resize(SIZES[sizes], prompts))
    of_prompt = generator.normal(size=(1200, prompts))[:, clusters]
    own = generator.normal(size=(1200, len(clusters)))
    rows = math.sqrt(alike) * of_prompt + math.sqrt(1 - alike) * own
    found = [mean_estimate(row, clusters) for row in rows]
    covered = np.mean([one.low <= 0 <= one.high for one in found])
    assert 0.925 <= covered <= 0.975
    if alike == 0.9:
        naive = [mean_estimate(row) for row in rows]
        assert np.mean([one.low <= 0 <= one.high for one in naive]) < 0.8


def test_metrics_have_the_declared_schema():
    table = metrics_table(
        [
            {"round": 0, "name": "win_rate", "estimate": Estimate(0.6, 0.5, 0.7, 99),
             "against": "start", "labeler": "jury"},
            {"round": 0, "name": "loss", "value": 0.69, "step": 1},
            {"round": 1, "name": "kl", "estimate": Estimate(0.1, -math.inf, math.inf, 1)},
        ]
    )  # fmt: skip
    assert table.schema == schemas.METRIC
    first, second, third = table.to_pylist()
    assert (first["value"], first["low"], first["high"], first["n"]) == (0.6, 0.5, 0.7, 99)
    assert (second["low"], second["step"]) == (None, 1)
    assert (third["low"], third["high"]) == (None, None)
    assert metrics_table([]).schema == schemas.METRIC


@pytest.mark.parametrize(
    "row",
    [
        {"round": 0, "name": "x"},
        {"round": 0, "name": "x", "value": 1.0, "wins": 3},
        {"round": 0, "name": "x", "value": math.nan},
    ],
)
def test_metrics_that_do_not_fit_are_refused(row):
    with pytest.raises(ValueError, match="metric"):
        metrics_table([row])
