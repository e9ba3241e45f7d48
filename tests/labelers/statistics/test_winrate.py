"""Win rates, their intervals, and the table that metrics are written as."""

import math

import numpy as np
import pytest

from prefloop.data import schemas
from prefloop.labelers.statistics.estimate import Estimate, mean_estimate
from prefloop.labelers.statistics.winrate import length_controlled_win_rate, win_rate
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
    # 2 wins, 4 ties, 2 losses: mean 0.5, V = (4 * 0.25) / 64, n_eff = 0.25 / V = 16, capped at 8:
    # Wilson at n = 8: half = 1.959964 * sqrt(0.25/8 + 3.841459/256) / (1 + 3.841459/8)
    #                = 1.959964 * 0.215060 / 1.480182 = 0.284767
    estimate = win_rate([1, 1, 0.5, 0.5, 0.5, 0.5, 0, 0])
    assert estimate.value == 0.5
    assert estimate.low == pytest.approx(0.5 - 0.284767, abs=1e-4)


def test_only_ties_is_one_half_with_an_interval():
    estimate = win_rate([0.5] * 6)
    assert (estimate.value, estimate.n) == (0.5, 6)
    assert estimate.low < 0.3
    assert estimate.high > 0.7


def test_answers_that_agree_within_a_prompt_count_once():
    # 4 prompts, 5 equal outcomes each, 2 prompts won: sums of deviations +-2.5,
    # V = 4/3 * 4 * 6.25 / 400 = 1/12, n_eff = 0.25 * 12 = 3 (prompts, less one for small G).
    outcomes = [1] * 5 + [0] * 5 + [1] * 5 + [0] * 5
    prompts = [p for p in "abcd" for _ in range(5)]
    clustered, naive = win_rate(outcomes, prompts), win_rate(outcomes)
    z2 = 3.841459
    half = math.sqrt(z2) * math.sqrt(0.25 / 3 + z2 / 36) / (1 + z2 / 3)
    assert clustered.high - 0.5 == pytest.approx(half, abs=1e-5)
    assert clustered.high - clustered.low > 1.8 * (naive.high - naive.low)
    assert clustered.n == 20


def test_independent_answers_of_a_prompt_count_in_full():
    generator = np.random.default_rng(0)
    outcomes = generator.integers(0, 2, 2000)
    prompts = np.repeat(np.arange(500), 4)
    clustered, naive = win_rate(outcomes, prompts), win_rate(outcomes)
    assert clustered.high - clustered.low == pytest.approx(naive.high - naive.low, rel=0.1)


def test_all_won_by_one_prompt_is_worth_one_observation():
    assert win_rate([1] * 9, ["p"] * 9) == Estimate(1.0, win_rate([1]).low, 1.0, 9)


def test_interval_covers_the_truth_as_often_as_it_says():
    # Prompts differ (Beta(2, 2) win probability), 3 answers each: 95% should cover, give or take.
    generator = np.random.default_rng(1)
    prompts = np.repeat(np.arange(60), 3)
    covered = 0
    for _ in range(400):
        outcomes = generator.random(180) < np.repeat(generator.beta(2, 2, 60), 3)
        estimate = win_rate(outcomes, prompts)
        covered += estimate.low <= 0.5 <= estimate.high
    assert 0.92 <= covered / 400 <= 0.98


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
