import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prefloop.data.hashing import content_id
from prefloop.data.schemas import DECISION
from prefloop.labelers.base import LabelerError, Vote, votes_table
from prefloop.labelers.config import Jury
from prefloop.labelers.decisions.decide import decide
from prefloop.labelers.decisions.pairs import propose_pairs
from prefloop.labelers.jury.round_jury import RoundJury
from prefloop.labelers.jury.verdict_table import (
    PositionBias,
    merge_votes,
    pairs_of,
    position_bias,
    prompts_of,
    read_votes,
)

FLIP = {"a": "b", "b": "a", "tie": "tie", "invalid": "invalid"}


def make_candidates(prompts: int = 1, each: int = 2) -> pa.Table:
    ids = [(content_id("c", p, i), content_id("p", p)) for p in range(prompts) for i in range(each)]
    candidates, owners = zip(*ids, strict=True)
    tokens = pa.array(range(10, 10 + len(ids)), pa.int32())
    return pa.table([candidates, owners, tokens], ["candidate_id", "prompt_id", "tokens"])


def make_vote(pair: dict, labeler: str, preference: str, order: str = "none", **more) -> Vote:
    return Vote(**pair, round=0, labeler=labeler, order=order, preference=preference, **more)


def decide_one(*votes: tuple, jury: Jury | None = None, weights: dict | None = None) -> dict:
    """The decision on one pair; votes are (labeler, preference, order, p_a)."""
    candidates = make_candidates()
    pairs = propose_pairs(candidates, per_prompt=None, seed=0)
    [pair] = pairs.to_pylist()
    rows = [
        make_vote(pair, labeler, preference, order, p_a=p_a)
        for labeler, preference, order, p_a in votes
    ]
    table = decide(votes_table(rows), pairs, candidates, RoundJury(jury or Jury(), weights or {}))
    assert table.schema == DECISION
    [decision] = table.to_pylist()
    assert {decision["chosen_id"], decision["rejected_id"]} == {pair["a_id"], pair["b_id"]}
    decision["winner"] = None
    if decision["kept"]:
        decision["winner"] = "a" if decision["chosen_id"] == pair["a_id"] else "b"
    return decision


@pytest.mark.parametrize("preference", ["a", "b"])
def test_the_verdict_decides_who_is_chosen(preference: str) -> None:
    """ANCHORS 1."""
    p_a = 1.0 if preference == "a" else 0.0
    decision = decide_one(("v", preference, "none", p_a))
    assert (decision["winner"], decision["kept"], decision["reason"]) == (preference, True, None)
    assert (decision["p_chosen"], decision["margin"], decision["agreement"]) == (1.0, 1.0, 1.0)
    assert (decision["score_chosen"], decision["score_rejected"]) == (1.0, 0.0)
    tokens = (10, 11) if decision["chosen_id"] == content_id("c", 0, 0) else (11, 10)
    assert (decision["chosen_tokens"], decision["rejected_tokens"]) == tokens
    assert decision["position_consistent"] is None
    assert decision["labelers"] == ["v"]


@pytest.mark.parametrize(
    ("first", "second", "winner", "p_chosen", "consistent"),
    [
        (("a", 0.9), ("a", 0.7), "a", 0.8, True),
        (("b", 0.2), ("b", 0.4), "b", 0.7, True),
        (("a", None), ("a", None), "a", 1.0, True),
        (("a", 0.9), ("b", 0.3), None, 0.5, False),
        (("a", 0.9), ("tie", 0.5), None, 0.5, False),
        (("tie", 0.45), ("tie", 0.4), None, 0.5, True),
    ],
)
def test_both_orders_of_a_judge_are_one_verdict(first, second, winner, p_chosen, consistent):
    """ANCHORS 2 and 9: a judge that contradicts itself has no preference."""
    decision = decide_one(("j", first[0], "ab", first[1]), ("j", second[0], "ba", second[1]))
    assert decision["winner"] == winner
    assert decision["p_chosen"] == pytest.approx(p_chosen)
    assert decision["position_consistent"] is consistent
    assert decision["reason"] == (None if winner else "tie")
    assert decision["agreement"] == 1.0


def test_one_invalid_order_makes_the_labeler_abstain() -> None:
    """ANCHORS 4."""
    decision = decide_one(
        ("j", "a", "ab", 0.9), ("j", "invalid", "ba", None), ("v", "b", "none", 0.0)
    )
    assert (decision["winner"], decision["labelers"]) == ("b", ["v"])
    assert decision["position_consistent"] is None
    alone = decide_one(("j", "a", "ab", 0.9), ("j", "invalid", "ba", None))
    assert (alone["reason"], alone["kept"], alone["labelers"]) == ("no_valid_vote", False, [])
    assert (alone["p_chosen"], alone["margin"], alone["agreement"]) == (0.5, 0.0, 0.0)


@pytest.mark.parametrize(
    ("votes", "jury", "weights", "winner", "agreement"),
    [
        # One against one is a tie, whoever comes first by name or row.
        ({"x": ("a", 1.0), "y": ("b", 0.0)}, Jury(), None, None, 0.0),
        ({"y": ("b", 0.0), "x": ("a", 1.0)}, Jury(rule="majority"), None, None, 0.0),
        ({"x": ("a", 1.0), "y": ("b", 0.0)}, Jury(), {"x": 2.0}, "a", 0.5),
        ({"x": ("a", 1.0), "y": ("b", 0.0)}, Jury(rule="majority"), {"y": 2.0}, "b", 0.5),
        # Sure against unsure: the mean listens to how sure, the majority does not.
        ({"x": ("a", 0.95), "y": ("b", 0.4)}, Jury(), None, "a", 0.5),
        ({"x": ("a", 0.95), "y": ("b", 0.4)}, Jury(rule="majority"), None, None, 0.0),
        # Half of the jury saying tie: the mean is for a, and a has no majority over tie.
        ({"x": ("a", 1.0), "y": ("tie", 0.5)}, Jury(), None, "a", 0.5),
        ({"x": ("a", 1.0), "y": ("tie", 0.5)}, Jury(rule="majority"), None, None, 0.5),
        ({"x": ("a", 1.0), "y": ("a", 1.0), "z": ("tie", 0.5)}, Jury(rule="majority"), None, "a",
         2 / 3),
        ({"x": ("b", 0.0), "y": ("invalid", None)}, Jury(), None, "b", 1.0),
        # The tie band.
        ({"x": ("a", 0.505)}, Jury(), None, None, 0.0),
        ({"x": ("a", 0.505)}, Jury(tie_band=0.0), None, "a", 1.0),
        ({"x": ("a", 0.6)}, Jury(tie_band=0.1), None, None, 0.0),
        # 0.1 three times and 0.9 three times: balanced but for rounding.
        ({f"x{i}": ("b" if i < 3 else "a", 0.1 if i < 3 else 0.9) for i in range(6)},
         Jury(tie_band=0.0), None, None, 0.0),
    ],
)  # fmt: skip
def test_juries(votes, jury, weights, winner, agreement) -> None:
    """ANCHORS 9: no silent tie-break."""
    rows = [(name, preference, "none", p_a) for name, (preference, p_a) in votes.items()]
    decision = decide_one(*rows, jury=jury, weights=weights)
    assert decision["winner"] == winner
    assert decision["agreement"] == pytest.approx(agreement)
    assert decision["reason"] == (None if winner else "tie")
    assert (decision["p_chosen"] > 0.5) == (winner is not None)


def test_scores_are_mean_win_probabilities_and_ties_count_half() -> None:
    candidates = make_candidates(each=3)
    pairs = propose_pairs(candidates, per_prompt=None, seed=0)
    a, b, c = sorted(candidates["candidate_id"].to_pylist())
    said = {(a, b): ("a", 0.9), (a, c): ("tie", 0.5), (b, c): ("b", 0.2)}
    votes = []
    for pair in pairs.to_pylist():
        preference, p_a = said[pair["a_id"], pair["b_id"]]
        votes.append(make_vote(pair, "j", preference, p_a=p_a))
    decisions = decide(votes_table(votes), pairs, candidates, RoundJury()).to_pylist()
    score = {}
    for row in decisions:
        score[row["chosen_id"]], score[row["rejected_id"]] = (
            row["score_chosen"], row["score_rejected"],
        )  # fmt: skip
        assert row["margin"] == pytest.approx(row["score_chosen"] - row["score_rejected"])
    # a: (0.9 + 0.5) / 2; b: (0.1 + 0.2) / 2; c: (0.5 + 0.8) / 2
    assert score == pytest.approx({a: 0.7, b: 0.15, c: 0.65})


def test_quality_is_the_mean_absolute_score_of_the_chosen_answer() -> None:
    candidates = make_candidates()
    pairs = propose_pairs(candidates, per_prompt=None, seed=0)
    [pair] = pairs.to_pylist()
    votes = [
        make_vote(pair, "v", "b", score_a=0.2, score_b=0.8),
        make_vote(pair, "w", "b", score_a=None, score_b=0.6),
        make_vote(pair, "j", "b"),
        make_vote(pair, "broken", "invalid", score_b=0.0),
    ]
    [decision] = decide(votes_table(votes), pairs, candidates, RoundJury()).to_pylist()
    assert decision["quality_chosen"] == pytest.approx(0.7)
    [unscored] = decide(votes_table(votes[2:3]), pairs, candidates, RoundJury()).to_pylist()
    assert unscored["quality_chosen"] is None


def test_round_and_pairs_without_votes() -> None:
    candidates = make_candidates(prompts=2)
    pairs = propose_pairs(candidates, per_prompt=None, seed=0)
    table = decide(votes_table([]), pairs, candidates, RoundJury(), round_index=4)
    assert table["reason"].to_pylist() == ["no_valid_vote"] * 2
    assert table["round"].to_pylist() == [4, 4]
    empty = decide(votes_table([]), pairs.slice(0, 0), candidates, RoundJury())
    assert empty.schema == DECISION
    assert len(empty) == 0


# Refusals


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"preference": "A"}, "preference is not"),
        ({"preference": "1"}, "preference is not"),
        ({"order": "first"}, "order is not"),
        ({"pair_id": content_id("other")}, "not proposed"),
        ({"a_id": content_id("stranger")}, "other candidates"),
        ({"p_a": 0.2}, "labels swapped"),
        ({"p_a": 1.5}, "not a probability"),
        ({"preference": "b", "p_a": 0.8}, "labels swapped"),
    ],
)
def test_the_label_set_and_frame_are_asserted(change: dict, problem: str) -> None:
    """ANCHORS 10: a wrong mapping of labels is refused, not counted."""
    candidates = make_candidates()
    pairs = propose_pairs(candidates, per_prompt=None, seed=0)
    [pair] = pairs.to_pylist()
    vote = {"labeler": "v", "order": "none", "preference": "a", "p_a": 1.0, "round": 0}
    votes = votes_table([Vote(**{**pair, **vote, **change})])
    with pytest.raises(LabelerError, match=problem):
        decide(votes, pairs, candidates, RoundJury())


def test_pairs_are_distinct_and_of_two_known_candidates() -> None:
    """ANCHORS 2: chosen is never rejected."""
    candidates = make_candidates()
    pairs = propose_pairs(candidates, per_prompt=None, seed=0)
    with pytest.raises(LabelerError, match="proposed twice"):
        decide(votes_table([]), pa.concat_tables([pairs, pairs]), candidates, RoundJury())
    same = pairs.set_column(3, "b_id", pairs["a_id"])
    with pytest.raises(LabelerError, match="with itself"):
        decide(votes_table([]), same, candidates, RoundJury())
    with pytest.raises(LabelerError, match="not there"):
        decide(votes_table([]), pairs, candidates.slice(0, 1), RoundJury())


# Properties

LABELERS = ("judge", "verifier", "person")


@st.composite
def ballots(draw: st.DrawFn) -> tuple[pa.Table, pa.Table, list[Vote]]:
    """Candidates, pairs, and any votes of three labelers on any of the pairs."""
    candidates = make_candidates(draw(st.integers(1, 3)), draw(st.integers(2, 4)))
    pairs = propose_pairs(candidates, per_prompt=None, seed=0)
    votes = []
    for pair in pairs.to_pylist():
        for labeler in LABELERS:
            orders = ("ab", "ba") if labeler == "judge" else ("none",)
            if not draw(st.booleans()):
                continue
            for order in orders:
                preference = draw(st.sampled_from(sorted(FLIP)))
                share = draw(st.none() | st.floats(0, 0.5))
                p_a = {"a": lambda p: 1 - p, "b": lambda p: p}.get(preference, lambda _: None)
                votes.append(
                    make_vote(
                        pair, labeler, preference, order,
                        p_a=None if share is None else p_a(share),
                    )
                )  # fmt: skip
    return candidates, pairs, votes


juries = st.builds(
    Jury, rule=st.sampled_from(["mean", "majority"]), tie_band=st.sampled_from([0, 0.01, 0.1])
)


@given(ballots(), juries, st.randoms(use_true_random=False))
@settings(max_examples=80, deadline=None)
def test_every_pair_gets_one_decision_whatever_the_order_of_rows(drawn, jury, random) -> None:
    """ANCHORS 5 and 8: joined by id, and rows in are rows out."""
    candidates, pairs, votes = drawn
    plain = decide(votes_table(votes), pairs, candidates, RoundJury(jury))
    assert plain["pair_id"].equals(pairs["pair_id"])
    rows = plain.to_pylist()
    assert sum(row["kept"] for row in rows) + sum(row["reason"] is not None for row in rows) == len(
        pairs
    )
    for row in rows:
        assert row["chosen_id"] != row["rejected_id"]
        assert row["kept"] == (row["p_chosen"] > 0.5) == (row["reason"] is None)
        assert 0 <= row["score_rejected"] <= 1
    random.shuffle(votes)
    order = list(range(len(candidates)))
    random.shuffle(order)
    shuffled = decide(votes_table(votes), pairs, candidates.take(order), RoundJury(jury))
    assert shuffled.equals(plain)
    reverse = pairs.take(list(range(len(pairs)))[::-1])
    backwards = decide(votes_table(votes), reverse, candidates, RoundJury(jury)).to_pylist()[::-1]
    assert backwards == rows


def swapped(vote: Vote) -> Vote:
    values = {name: getattr(vote, name) for name in Vote.__dataclass_fields__}
    p_a = None if vote.p_a is None else 1 - vote.p_a
    values |= {"a_id": vote.b_id, "b_id": vote.a_id, "preference": FLIP[vote.preference]}
    return Vote(**values | {"p_a": p_a, "order": {"ab": "ba", "ba": "ab"}.get(vote.order, "none")})


@given(ballots(), juries)
@settings(max_examples=60, deadline=None)
def test_swapping_a_and_b_changes_no_decision(drawn, jury) -> None:
    """ANCHORS 1: the same view of the pair, said the other way round."""
    candidates, pairs, votes = drawn
    plain = decide(votes_table(votes), pairs, candidates, RoundJury(jury))
    other = decide(
        votes_table([swapped(vote) for vote in votes]), pairs, candidates, RoundJury(jury)
    )
    numbers = [name for name in DECISION.names if pa.types.is_floating(DECISION.field(name).type)]
    rest = [name for name in DECISION.names if name not in numbers]
    assert other.select(rest).equals(plain.select(rest))
    for name in numbers:
        np.testing.assert_allclose(other[name].to_numpy(), plain[name].to_numpy(), atol=1e-9)


@given(ballots(), juries)
@settings(max_examples=60, deadline=None)
def test_flipping_every_verdict_flips_every_decision(drawn, jury) -> None:
    """ANCHORS 1."""
    candidates, pairs, votes = drawn
    flipped = []
    for vote in votes:
        values = {name: getattr(vote, name) for name in Vote.__dataclass_fields__}
        values["preference"] = FLIP[vote.preference]
        values["p_a"] = None if vote.p_a is None else 1 - vote.p_a
        flipped.append(Vote(**values))
    plain = decide(votes_table(votes), pairs, candidates, RoundJury(jury)).to_pylist()
    other = decide(votes_table(flipped), pairs, candidates, RoundJury(jury)).to_pylist()
    for one, two in zip(plain, other, strict=True):
        assert one["reason"] == two["reason"]
        same_way = one["chosen_id"] == two["chosen_id"]
        assert same_way == (one["reason"] is not None)


def test_pairs_can_be_taken_from_the_votes() -> None:
    candidates = make_candidates(prompts=3)
    pairs = propose_pairs(candidates, per_prompt=None, seed=0)
    votes = [make_vote(pair, "v", "b") for pair in reversed(pairs.to_pylist())]
    table = decide(votes_table(votes), None, candidates, RoundJury())
    assert table["pair_id"].to_pylist() == pairs["pair_id"].to_pylist()[::-1]


# Position bias


def test_position_bias_and_consistency() -> None:
    pairs = propose_pairs(make_candidates(prompts=4), per_prompt=None, seed=0).to_pylist()
    said = [("a", "a"), ("a", "b"), ("a", "b"), ("b", "invalid")]
    votes = [make_vote(pair, "verifier", "a") for pair in pairs]
    for pair, (ab, ba) in zip(pairs, said, strict=True):
        votes += [make_vote(pair, "judge", ab, "ab"), make_vote(pair, "judge", ba, "ba")]
    found = bias_of(votes)
    assert set(found) == {"judge"}
    # Shown first and preferred: a, a, a of order ab; b, b of order ba. Seven votes are valid.
    assert (found["judge"].shown, found["judge"].first_share) == (7, pytest.approx(5 / 7))
    assert (found["judge"].swapped, found["judge"].consistency) == (3, pytest.approx(1 / 3))
    assert bias_of([swapped(vote) for vote in votes]) == found
    assert bias_of([]) == {}


def bias_of(votes: list[Vote]) -> dict[str, PositionBias]:
    table = votes_table(votes)
    pairs = pairs_of(table)
    read = read_votes(table, pairs)
    return position_bias(read, merge_votes(read, len(pairs)), prompts_of(pairs))
