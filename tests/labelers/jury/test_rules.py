"""The rules of a jury, by hand, and what fitting finds in votes of known labelers."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pyarrow as pa
import pytest
from pydantic import ValidationError

from prefloop.data.hashing import content_id
from prefloop.labelers.base import LabelerError, Vote, votes_table
from prefloop.labelers.config import Jury, LabelConfig
from prefloop.labelers.decisions.decide import decide
from prefloop.labelers.decisions.pairs import propose_pairs
from prefloop.labelers.jury.calibrator import Calibrator
from prefloop.labelers.jury.fit import count_patterns, fit_jury
from prefloop.labelers.jury.round_jury import RoundJury
from prefloop.labelers.jury.rules import FittedJury, log_odds
from prefloop.labelers.jury.verdict_table import merge_votes, read_votes

RELIABILITY, DAWID_SKENE = Jury(rule="reliability"), Jury(rule="dawid_skene")
MIRROR = {"a": "b", "b": "a", "tie": "tie", "invalid": "invalid"}


def world(pairs: int) -> tuple[pa.Table, list[dict]]:
    """Candidates of ``pairs`` prompts with two answers each, and their pairs."""
    ids = [(content_id("c", p, i), content_id("p", p)) for p in range(pairs) for i in range(2)]
    candidates, prompts = zip(*ids, strict=True)
    tokens = pa.array([5] * len(ids), pa.int32())
    table = pa.table([candidates, prompts, tokens], ["candidate_id", "prompt_id", "tokens"])
    return table, propose_pairs(table, per_prompt=None, seed=0).to_pylist()


def votes_of(pairs: list[dict], said: dict[str, list[str]]) -> pa.Table:
    """One vote of each labeler on each pair; the empty string is no vote at all."""
    return votes_table(
        [
            Vote(**pair, round=0, labeler=name, order="none", preference=verdict)
            for name, verdicts in said.items()
            for pair, verdict in zip(pairs, verdicts, strict=True)
            if verdict
        ]
    )


def p_of_a(jury: Jury, fitted: FittedJury | None = None, weights=None, **said: str) -> float | None:
    """The jury's P(a preferred to b) on one pair; null where it is undecided."""
    candidates, pairs = world(1)
    votes = votes_of(pairs, {name: [verdict] for name, verdict in said.items()})
    [row] = decide(
        votes, pa.Table.from_pylist(pairs), candidates, RoundJury(jury, weights or {}, fitted)
    ).to_pylist()
    if row["reason"] == "no_valid_vote":
        return None
    a_wins = row["chosen_id"] == pairs[0]["a_id"]
    assert (row["p_chosen"] == 0.5) == (row["reason"] == "tie")
    return row["p_chosen"] if a_wins else 1 - row["p_chosen"]


def simulate(accuracies: dict[str, float], pairs: int, seed: int) -> tuple[list[str], dict]:
    """The truth, and verdicts of independent labelers that are right with their accuracy."""
    draw = np.random.default_rng(seed)
    truth = draw.choice(["a", "b"], pairs).tolist()
    said = {
        name: [one if draw.random() < accuracy else MIRROR[one] for one in truth]
        for name, accuracy in accuracies.items()
    }
    return truth, said


def fit(said: dict[str, list[str]], jury: Jury) -> FittedJury:
    _, pairs = world(len(next(iter(said.values()))))
    return fit_jury(count_patterns([votes_of(pairs, said)], list(said)), list(said), jury)


def share_right(said: dict, truth: list[str], jury: Jury, fitted: FittedJury | None) -> float:
    candidates, pairs = world(len(truth))
    table = decide(
        votes_of(pairs, said),
        pa.Table.from_pylist(pairs),
        candidates,
        RoundJury(jury, fitted=fitted),
    )
    right = [
        row["kept"] and row["chosen_id"] == pair["a_id" if one == "a" else "b_id"]
        for row, pair, one in zip(table.to_pylist(), pairs, truth, strict=True)
    ]
    return sum(right) / len(right)


# Reliability -------------------------------------------------------------------------------------

KNOWN = FittedJury("reliability", 0, accuracy={"good": 0.9, "poor": 0.6, "weak": 0.6})


def test_one_good_labeler_outweighs_two_poor_ones() -> None:
    # log(9) = 2.197; log(1.5) = 0.405 twice: 2.197 - 0.811 = 1.386 = log(4); sigma(log 4) = 0.8.
    assert p_of_a(RELIABILITY, KNOWN, good="a", poor="b", weak="b") == pytest.approx(0.8)
    assert p_of_a(RELIABILITY, KNOWN, good="b", poor="a", weak="a") == pytest.approx(0.2)
    # The majority thinks otherwise.
    assert p_of_a(Jury(rule="majority"), good="a", poor="b", weak="b") == pytest.approx(1 / 3)


def test_ties_and_abstentions_add_nothing() -> None:
    # sigma(log 1.5) = 0.6: the poor labeler stands alone.
    for silent in ("tie", "invalid", ""):
        assert p_of_a(RELIABILITY, KNOWN, good=silent, poor="a") == pytest.approx(0.6)
    assert p_of_a(RELIABILITY, KNOWN, good="tie", poor="tie") == 0.5
    assert p_of_a(RELIABILITY, KNOWN, good="invalid") is None
    # Equal weights against each other: a tie, and nobody breaks it.
    assert p_of_a(RELIABILITY, KNOWN, poor="a", weak="b") == 0.5


def test_the_configured_weight_multiplies_the_log_odds() -> None:
    # 2 x 0.405 - 0.405 = log 1.5
    found = p_of_a(RELIABILITY, KNOWN, weights={"poor": 2.0}, poor="a", weak="b")
    assert found == pytest.approx(0.6)


def test_a_labeler_no_better_than_chance_has_no_vote() -> None:
    fitted = FittedJury("reliability", 0, accuracy={"good": 0.8, "coin": 0.5, "liar": 0.2})
    assert p_of_a(RELIABILITY, fitted, good="a", coin="b", liar="b") == pytest.approx(0.8)
    assert p_of_a(RELIABILITY, fitted, coin="b", liar="b") is None


def test_log_odds_are_bounded_and_never_negative() -> None:
    assert log_odds(0.75) == pytest.approx(math.log(3))
    assert log_odds(0.999999) == pytest.approx(math.log(99))
    assert log_odds(0.5) == log_odds(0.1) == 0.0


def test_accuracies_are_found_in_the_votes() -> None:
    truth, said = simulate({"good": 0.9, "fair": 0.75, "poor": 0.6}, 3000, seed=1)
    fitted = fit(said, RELIABILITY)
    assert fitted.rule == "reliability"
    assert fitted.pairs == 3000
    # Three standard errors of an accuracy from some 3,000 pairs of unknown truth.
    assert fitted.accuracy == pytest.approx({"good": 0.9, "fair": 0.75, "poor": 0.6}, abs=0.06)
    majority = share_right(said, truth, Jury(rule="majority"), None)
    assert share_right(said, truth, RELIABILITY, fitted) > majority + 0.03


def test_given_accuracies_are_taken_as_they_are() -> None:
    jury = Jury(rule="reliability", reliability={"x": 0.7, "y": 0.4})
    fitted = fit_jury(Counter({(0, 1): 3}), ["x", "y"], jury)
    assert fitted.accuracy == {"x": 0.7, "y": 0.4}
    assert len(fitted.notes) == 1
    assert "y is no better than chance" in fitted.notes[0]


# Dawid-Skene -------------------------------------------------------------------------------------


def test_dawid_skene_posterior_by_hand() -> None:
    confusion = {
        "a": {"a": 0.7, "b": 0.1, "tie": 0.2},
        "b": {"a": 0.1, "b": 0.7, "tie": 0.2},
        "tie": {"a": 0.2, "b": 0.2, "tie": 0.6},
    }
    fitted = FittedJury(
        "dawid_skene", 9, prior={"a": 0.4, "b": 0.4, "tie": 0.2}, confusions={"x": confusion}
    )
    # Says a: 0.4 x 0.7 = 0.28 for a, 0.4 x 0.1 = 0.04 for b, 0.2 x 0.2 = 0.04 for a tie; of 0.36:
    # 0.7778 + 0.1111 / 2.
    assert p_of_a(DAWID_SKENE, fitted, x="a") == pytest.approx(0.28 / 0.36 + 0.02 / 0.36)
    # Says tie: 0.08, 0.08 and 0.12: a tie is the most probable truth.
    assert p_of_a(DAWID_SKENE, fitted, x="tie") == 0.5
    assert p_of_a(DAWID_SKENE, fitted, x="invalid") is None


def test_dawid_skene_finds_the_labelers_out() -> None:
    qualities = {"good": 0.95, "fair": 0.7, "poor": 0.6, "weak": 0.55}
    truth, said = simulate(qualities, 3000, seed=2)
    fitted = fit(said, DAWID_SKENE)
    assert fitted.confusions is not None
    found = {name: row["a"]["a"] for name, row in fitted.confusions.items()}
    assert found == pytest.approx(qualities, abs=0.06)
    majority = share_right(said, truth, Jury(rule="majority"), None)
    assert share_right(said, truth, DAWID_SKENE, fitted) > majority + 0.05
    for row in fitted.confusions.values():  # which answer is called a says nothing
        assert row["a"]["a"] == row["b"]["b"]
        assert row["a"]["tie"] == row["b"]["tie"]


def test_equal_labelers_are_a_majority() -> None:
    _, said = simulate(dict.fromkeys("xyz", 0.8), 2000, seed=3)
    for jury in (RELIABILITY, DAWID_SKENE):
        fitted = fit(said, jury)
        for verdicts in ("aab", "bba", "aaa", "bab"):
            p_a = p_of_a(jury, fitted, **dict(zip("xyz", verdicts, strict=True)))
            assert (p_a > 0.5) == (verdicts.count("a") > 1)


@pytest.mark.parametrize("jury", [RELIABILITY, DAWID_SKENE], ids=lambda one: one.rule)
def test_a_labeler_that_always_says_a_has_no_influence(jury: Jury) -> None:
    _, said = simulate({"x": 0.85, "y": 0.8, "z": 0.75}, 2000, seed=4)
    fitted = fit({**said, "stuck": ["a"] * 2000}, jury)
    votes = {"x": "b", "y": "b", "z": "a"}
    without = p_of_a(jury, fitted, **votes)
    assert p_of_a(jury, fitted, stuck="a", **votes) == pytest.approx(without, abs=0.03)


def test_ties_of_many_labelers_are_a_truth_of_their_own() -> None:
    draw = np.random.default_rng(5)
    truth = draw.choice(["a", "b", "tie"], 1500, p=[0.3, 0.3, 0.4]).tolist()
    said = {
        name: [
            one if draw.random() < 0.85 else str(draw.choice(["a", "b", "tie"])) for one in truth
        ]
        for name in "xyz"
    }
    fitted = fit(said, DAWID_SKENE)
    assert fitted.prior is not None
    assert fitted.prior["tie"] == pytest.approx(0.4, abs=0.05)
    assert p_of_a(DAWID_SKENE, fitted, x="tie", y="tie", z="a") == 0.5


@pytest.mark.parametrize("jury", [RELIABILITY, DAWID_SKENE], ids=lambda one: one.rule)
def test_two_labelers_cannot_be_told_apart(jury: Jury) -> None:
    _, said = simulate({"x": 0.9, "y": 0.6}, 200, seed=6)
    fitted = fit(said, jury)
    assert fitted.rule == "majority"
    assert "takes three" in fitted.notes[0]
    assert p_of_a(jury, fitted, x="a", y="b") == 0.5
    assert p_of_a(jury, fitted, x="a", y="tie") == 0.5
    assert p_of_a(jury, fitted, x="b", y="b") == 0.0
    # Nor can three of which one never decides.
    assert fit({**said, "z": ["tie"] * 200}, jury).rule == "majority"


@pytest.mark.parametrize("jury", [RELIABILITY, DAWID_SKENE], ids=lambda one: one.rule)
def test_a_round_without_a_valid_vote_is_undecided(jury: Jury) -> None:
    fitted = fit(dict.fromkeys("xyz", ["invalid"] * 4), jury)
    assert fitted.rule == "majority"
    assert p_of_a(jury, fitted, x="invalid", y="invalid", z="invalid") is None


@pytest.mark.parametrize("jury", [RELIABILITY, DAWID_SKENE], ids=lambda one: one.rule)
def test_rows_blocks_and_names_of_the_answers_decide_nothing(jury: Jury) -> None:
    _, said = simulate({"x": 0.9, "y": 0.7, "z": 0.6}, 300, seed=7)
    _, pairs = world(300)
    votes = votes_of(pairs, said)
    whole = fit_jury(count_patterns([votes], list(said)), list(said), jury)
    shuffled = votes.take(np.random.default_rng(0).permutation(len(votes)))
    assert fit_jury(count_patterns([shuffled], list(said)), list(said), jury) == whole
    of_first = pa.compute.is_in(votes["pair_id"], pa.array([p["pair_id"] for p in pairs[:100]]))
    blocks = [votes.filter(of_first), votes.filter(pa.compute.invert(of_first))]
    assert fit_jury(count_patterns(blocks, list(said)), list(said), jury) == whole
    mirrored = {name: [MIRROR[one] for one in verdicts] for name, verdicts in said.items()}
    turned = fit(mirrored, jury)
    assert (turned.accuracy, turned.prior) == (whole.accuracy, whole.prior)
    for verdicts in ("aab", "bab", "bba"):
        ours = dict(zip("xyz", verdicts, strict=True))
        theirs = {name: MIRROR[one] for name, one in ours.items()}
        assert p_of_a(jury, whole, **ours) == pytest.approx(1 - p_of_a(jury, whole, **theirs))


def test_a_contrarian_is_named() -> None:
    _, said = simulate({"x": 0.9, "y": 0.85, "z": 0.8, "liar": 0.1}, 1500, seed=8)
    fitted = fit(said, DAWID_SKENE)
    assert [note.split()[0] for note in fitted.notes] == ["liar"]
    assert p_of_a(DAWID_SKENE, fitted, liar="b") > 0.5
    assert "liar is no better than chance" in fit(said, RELIABILITY).notes[0]


@pytest.mark.parametrize("rule", ["reliability", "dawid_skene"])
@pytest.mark.parametrize(
    "counts", [{(0, 0, 1): 1}, {(0, 0, 1): 2, (0, 1, 0): 1}, {(0, 0, 0): 3, (0, 0, 1): 3}]
)
def test_a_few_pairs_make_no_labeler_infallible_or_worthless(rule, counts) -> None:
    """z differs where it differs by chance: EM had it wrong in 99 of 100, and the others right."""
    fitted = fit_jury(Counter(counts), list("xyz"), Jury(rule=rule))
    assert fitted.notes == ()
    if fitted.accuracy is None:
        right = [one["a"]["a"] for one in fitted.confusions.values()]
        assert all(one["a"]["a"] > one["a"]["b"] for one in fitted.confusions.values())
    else:
        right = list(fitted.accuracy.values())
    assert all(0.5 < one < 0.76 for one in right)


def test_a_large_round_is_fitted_on_thinned_patterns() -> None:
    counts = Counter(
        {(0, 0, 0): 600_000, (0, 0, 1): 150_000, (0, 1, 0): 150_000, (1, 0, 0): 100_000}
    )
    fitted = fit_jury(counts, list("xyz"), RELIABILITY)
    assert fitted.pairs == 1_000_000
    small = Counter({pattern: count // 100 for pattern, count in counts.items()})
    assert fit_jury(small, list("xyz"), RELIABILITY).accuracy == pytest.approx(
        fitted.accuracy, abs=1e-3
    )


# Wiring ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("jury", [RELIABILITY, DAWID_SKENE])
def test_many_labelers_are_fitted_though_every_pattern_is_rare(
    jury: Jury, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("prefloop.labelers.jury.fit._MOST_PAIRS", 1500)
    names = [f"labeler {index}" for index in range(10)]
    draw = np.random.default_rng(0)
    truth = draw.integers(0, 2, 6000)
    said = np.where(draw.random((6000, 10)) < 0.75, truth[:, None], 1 - truth[:, None])
    said[draw.random((6000, 10)) < 0.3] = 3
    counts = Counter(map(tuple, said.tolist()))
    assert max(counts.values()) < 20
    fitted = fit_jury(counts, names, jury)
    assert (fitted.rule, fitted.pairs) == (jury.rule, 6000)
    found = fitted.accuracy or {name: fitted.confusions[name]["a"]["a"] for name in names}
    assert np.mean(list(found.values())) == pytest.approx(0.75, abs=0.02)
    assert list(found.values()) == pytest.approx([0.75] * 10, abs=0.06)


@pytest.mark.parametrize("times", [1, 4000])
@pytest.mark.parametrize("jury", [RELIABILITY, DAWID_SKENE])
def test_votes_that_say_little_are_fitted_all_the_same(jury: Jury, times: int) -> None:
    for patterns in (
        [(0, 0, 0)], [(0, 3, 3), (3, 0, 3), (3, 3, 0)], [(0, 1, 2), (2, 2, 2)],
        [(2, 2, 2), (3, 3, 3), (0, 1, 0)], [(3, 3, 3)], [(2, 2, 2)], [],
    ):  # fmt: skip
        fitted = fit_jury(Counter(dict.fromkeys(patterns, times)), list("xyz"), jury)
        rows = [row for of in (fitted.confusions or {}).values() for row in of.values()]
        shares = [*(fitted.accuracy or {}).values(), *(p for row in rows for p in row.values())]
        assert np.isfinite(shares).all()
        assert all(sum(row.values()) == pytest.approx(1, abs=1e-5) for row in rows)


def test_nothing_fitted_is_an_error_and_so_is_a_stranger() -> None:
    with pytest.raises(LabelerError, match="needs what is fitted"):
        p_of_a(RELIABILITY, None, x="a")
    with pytest.raises(LabelerError, match="the labeler late"):
        p_of_a(RELIABILITY, KNOWN, late="a")
    _, pairs = world(1)
    with pytest.raises(LabelerError, match="votes of y"):
        count_patterns([votes_of(pairs, {"y": ["a"]})], ["x"])


def test_fitted_juries_survive_json() -> None:
    _, said = simulate({"x": 0.9, "y": 0.7, "z": 0.6}, 100, seed=9)
    for jury in (RELIABILITY, DAWID_SKENE):
        fitted = fit(said, jury)
        assert FittedJury.from_dict(fitted.as_dict()) == fitted


@pytest.mark.parametrize(
    ("jury", "said"),
    [
        (
            {"rule": "reliability", "reliability": {"verifier": 0.8, "x": 0.7}},
            "'x' names no labeler",
        ),
        ({"rule": "reliability", "reliability": {}}, "'verifier' is missing"),
        ({"rule": "mean", "reliability": {"verifier": 0.8}}, "jury.rule is mean"),
    ],
)
def test_given_accuracies_must_fit_the_labelers(jury: dict, said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        LabelConfig.model_validate({"labelers": [{"type": "verifier"}], "jury": jury})


def test_soft_votes_are_calibrated_before_the_jury_sees_them() -> None:
    candidates, pairs = world(3)
    votes = votes_table(
        [
            Vote(**pairs[0], round=0, labeler="j", order="none", preference="b", p_a=0.1),
            Vote(**pairs[1], round=0, labeler="j", order="none", preference="a"),
            Vote(**pairs[2], round=0, labeler="other", order="none", preference="a", p_a=0.9),
        ]
    )
    halved = Calibrator("platt", n=1000, slope=0.5)
    table = decide(
        votes, pa.Table.from_pylist(pairs), candidates, RoundJury(calibrators={"j": halved})
    )
    # logit(0.9) = log 9; half of it is log 3, and sigma(log 3) = 0.75. Hard votes stay hard, and
    # other labelers as they are.
    assert table["p_chosen"].to_pylist() == pytest.approx([0.75, 1.0, 0.9])
    assert table["chosen_id"][0].as_py() == pairs[0]["b_id"]


@pytest.mark.parametrize(
    ("first", "second", "p_a"),
    [
        ("aab", "aaa", (2 / 3 + 1) / 2),  # most of each order say a
        ("aab", "bba", 0.5),  # the orders contradict each other
        ("abt", "aaa", 0.5),  # no majority in the first
        ("aax", "aaa", 1.0),  # one that cannot be read is outvoted
        ("axx", "aaa", None),  # most cannot be read: the labeler abstains
        ("a", "a", 1.0),
        ("a", "x", None),
    ],
)
def test_what_most_votes_of_an_order_say_counts(first: str, second: str, p_a: float | None) -> None:
    said = {"a": "a", "b": "b", "t": "tie", "x": "invalid"}
    _, pairs = world(2)
    votes = [
        Vote(**pairs[0], round=0, labeler="judge", order=order, preference=said[one])
        for order, several in (("ab", first), ("ba", second))
        for one in several
    ]
    # Another pair between, so that rows are not where they would be by chance.
    votes.insert(1, Vote(**pairs[1], round=0, labeler="judge", order="ab", preference="b"))
    table, proposed = votes_table(votes), pa.Table.from_pylist(pairs)
    verdicts = merge_votes(read_votes(table, proposed), 2)
    assert verdicts.valid[:, 0].tolist() == [p_a is not None, True]
    if p_a is not None:
        assert verdicts.p_a[0, 0] == pytest.approx(p_a)
        assert verdicts.verdict[0, 0] == (p_a > 0.5)
    assert verdicts.verdict[1, 0] == -1
    decided = decide(table, proposed, world(2)[0], RoundJury(Jury(), {}, None)).to_pylist()
    assert len(decided) == 2
    assert decided[0]["p_chosen"] == pytest.approx(max(p_a or 0.5, 1 - (p_a or 0.5)))


def test_several_labels_without_an_order_are_several_opinions() -> None:
    """Such as three ratings of one pair by people: they contradict each other, and nobody won."""
    _, pairs = world(1)
    votes = [
        Vote(**pairs[0], round=0, labeler="given", order="none", preference=said) for said in "aab"
    ]
    verdicts = merge_votes(read_votes(votes_table(votes), pa.Table.from_pylist(pairs)), 1)
    assert (verdicts.valid[0, 0], verdicts.verdict[0, 0]) == (True, 0)


def test_a_majority_that_the_probabilities_contradict_is_a_tie() -> None:
    _, pairs = world(1)
    probabilities = [0.51, 0.52, 0.05]
    votes = [
        Vote(**pairs[0], round=0, labeler="judge", order="ab", preference="a" if p > 0.5 else "b",
             p_a=p)
        for p in probabilities
    ]  # fmt: skip
    verdicts = merge_votes(read_votes(votes_table(votes), pa.Table.from_pylist(pairs)), 1)
    assert (verdicts.verdict[0, 0], verdicts.p_a[0, 0]) == (0, 0.5)
    for vote in votes[:2]:
        assert vote.preference == "a"
    steady = merge_votes(read_votes(votes_table(votes[:2]), pa.Table.from_pylist(pairs)), 1)
    assert steady.p_a[0, 0] == pytest.approx(0.515)
    assert steady.soft[0, 0]
