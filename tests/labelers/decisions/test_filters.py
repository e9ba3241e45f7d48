import math
from fractions import Fraction
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter

from prefloop.data.hashing import content_id
from prefloop.data.schemas import DECISION
from prefloop.labelers.base import LabelerError
from prefloop.labelers.config import FilterConfig, LengthBalance, PairFilter
from prefloop.labelers.decisions.filters import (
    BalanceRows,
    apply_balance,
    apply_filters,
    balance_cutoff,
)

ALL = {"type": "all"}


def make_rows(rows: list[dict]) -> tuple[pa.Table, pa.Table]:
    """Decisions and candidates; every row is a prompt of its own unless it names one."""
    decisions, candidates = [], []
    for index, row in enumerate(rows):
        values = {
            "prompt": index, "chosen": f"chosen text {index}", "rejected": f"other words {index}",
            "chosen_stop": "stop", "rejected_stop": "stop", **row,
        }  # fmt: skip
        ids = [content_id("candidate", index, side) for side in ("chosen", "rejected")]
        decisions.append(
            {
                "pair_id": content_id("pair", index), "prompt_id": content_id(values["prompt"]),
                "round": 0, "chosen_id": ids[0], "rejected_id": ids[1], "p_chosen": 0.9,
                "score_chosen": 0.75, "score_rejected": 0.25, "margin": 0.5,
                "quality_chosen": 0.8, "agreement": 1.0, "position_consistent": True,
                "chosen_tokens": 10, "rejected_tokens": 10, "labelers": ["v"], "kept": True,
                "reason": None,
                **{key: value for key, value in row.items() if key in DECISION.names},
            }
        )  # fmt: skip
        for side, candidate in zip(("chosen", "rejected"), ids, strict=True):
            text, stop = values[side], values[f"{side}_stop"]
            policy = values.get(f"{side}_policy", "policy")
            candidates.append(
                {"candidate_id": candidate, "text": text, "finish_reason": stop, "policy": policy,
                 "policy_revision": policy, "origin": values.get(f"{side}_origin", "sampled")}
            )  # fmt: skip
    columns = ("candidate_id", "text", "finish_reason", "policy", "policy_revision", "origin")
    schema = pa.schema([(name, pa.string()) for name in columns])
    return (
        pa.Table.from_pylist(decisions, schema=DECISION),
        pa.Table.from_pylist(candidates, schema=schema),
    )


def reasons(rows: list[dict], *filters: dict, strategy: dict = ALL) -> list[str | None]:
    decisions, candidates = make_rows(rows)
    config = FilterConfig(strategy=strategy, filters=filters)
    out = apply_filters(decisions, candidates, config, seed=0)
    assert out.schema == DECISION
    assert out["pair_id"].equals(decisions["pair_id"])
    assert out["kept"].to_pylist() == [reason is None for reason in out["reason"].to_pylist()]
    return out["reason"].to_pylist()


CASES = [
    ({"type": "length_ratio", "max": 2}, {"chosen_tokens": 20}, {"chosen_tokens": 21}),
    ({"type": "length_ratio", "max": 2}, {"rejected_tokens": 5}, {"rejected_tokens": 4}),
    ({"type": "length_ratio", "max": 10}, {"rejected_tokens": 0}, {"chosen_tokens": 101}),
    ({"type": "length", "min_tokens": 5}, {"rejected_tokens": 5}, {"rejected_tokens": 4}),
    ({"type": "length", "max_tokens": 12}, {"chosen_tokens": 12}, {"rejected_tokens": 13}),
    ({"type": "agreement", "min": 2 / 3}, {"agreement": 2 / 3}, {"agreement": 0.5}),
    ({"type": "position_consistency"}, {}, {"position_consistent": False}),
    ({"type": "position_consistency"}, {"position_consistent": None},
     {"position_consistent": False}),
    ({"type": "margin", "min": 0.3}, {"margin": 0.6 - 0.3}, {"margin": 0.29}),
    ({"type": "p_chosen", "min": 0.7}, {"p_chosen": 0.7}, {"p_chosen": 0.69}),
    ({"type": "min_quality", "min": 0.8}, {}, {"quality_chosen": 0.79}),
    ({"type": "min_quality", "min": -5}, {}, {"quality_chosen": None}),
    ({"type": "truncated"}, {}, {"chosen_stop": "length"}),
    ({"type": "truncated"}, {}, {"rejected_stop": "length"}),
    ({"type": "truncated", "which": "chosen"}, {"rejected_stop": "length"},
     {"chosen_stop": "length"}),
    ({"type": "identical"}, {"chosen": "a b", "rejected": "ab"},
     {"chosen": " Straße\n\nA ", "rejected": "STRASSE a"}),
    ({"type": "near_duplicate_answers", "max_similarity": 0.75},
     {"chosen": "abcd", "rejected": "abcx"}, {"chosen": "abcde", "rejected": "abcdx"}),
    ({"type": "near_duplicate_answers", "max_similarity": 0.95}, {"chosen": "y", "rejected": "x"},
     {"chosen": "a fox sat on the old wall.", "rejected": "a fox sat on the old wall!"}),
]  # fmt: skip


@pytest.mark.parametrize("empty", ["", " ", "\n\t", "\u2003\u00a0"])
@pytest.mark.parametrize("side", ["chosen", "rejected"])
def test_pairs_with_an_empty_answer_never_stay(empty: str, side: str) -> None:
    undecided = {side: empty, "kept": False, "reason": "no_valid_vote", "p_chosen": 0.5}
    assert reasons([{}, {side: empty}, undecided]) == [None, "empty_answer", "empty_answer"]


@pytest.mark.parametrize(("one", "passes", "drops"), CASES)
def test_each_filter(one: dict, passes: dict, drops: dict) -> None:
    assert reasons([passes, drops, passes], one) == [None, one["type"], None]


def test_every_filter_has_a_case_or_tests_of_its_own() -> None:
    tested = {case[0]["type"] for case in CASES}
    schema = TypeAdapter(PairFilter).json_schema()
    assert set(schema["discriminator"]["mapping"]) == tested | {"length_balance", "score"}


def test_the_first_filter_to_drop_a_pair_is_its_reason() -> None:
    short = {"rejected_tokens": 1, "margin": 0.0}
    length, margin = {"type": "length", "min_tokens": 2}, {"type": "margin", "min": 0.1}
    assert reasons([short, {}], length, margin) == ["length", None]
    assert reasons([short, {}], margin, length) == ["margin", None]


def test_undecided_pairs_keep_their_reason() -> None:
    tie = {"kept": False, "reason": "tie", "margin": 0.0, "chosen": "x", "rejected": "x"}
    assert reasons([tie, {}, {"margin": 0.0}], {"type": "margin", "min": 0.1}) == [
        "tie", None, "margin",
    ]  # fmt: skip


def test_identical_answers_never_stay_listed_or_not() -> None:
    """ANCHORS 2: chosen != rejected, as texts too."""
    same = {"chosen": "Same  text", "rejected": "same text "}
    assert reasons([same, {}]) == ["identical", None]


def test_the_strategy_comes_after_the_filters() -> None:
    rows = [{"prompt": 0, "margin": m} for m in (0.9, 0.5, 0.2)] + [{"prompt": 1, "margin": 0.3}]
    rows[0]["chosen_stop"] = "length"
    strategy = {"type": "best_vs_worst"}
    assert reasons(rows, {"type": "truncated"}, strategy=strategy) == [
        "truncated", None, "pair_strategy", None,
    ]  # fmt: skip


def test_no_rows_and_unknown_candidates() -> None:
    assert reasons([], *(case[0] for case in CASES[::5])) == []
    decisions, candidates = make_rows([{}])
    with pytest.raises(LabelerError, match="not among the candidates"):
        apply_filters(decisions, candidates.slice(1), FilterConfig(), seed=0)


def test_a_filter_is_listed_once() -> None:
    with pytest.raises(ValueError, match="listed twice"):
        FilterConfig(filters=[{"type": "margin"}, {"type": "margin", "min": 0.2}])


@given(
    st.lists(
        st.fixed_dictionaries(
            {
                "prompt": st.integers(0, 3),
                "margin": st.sampled_from([-0.5, 0.0, 0.1, 0.5]),
                "agreement": st.sampled_from([0.0, 0.5, 1.0]),
                "chosen_tokens": st.integers(0, 30),
                "chosen": st.sampled_from(["one text", "other text", "One  text"]),
                "rejected": st.sampled_from(["one text", "unlike all else"]),
                "chosen_stop": st.sampled_from(["stop", "length"]),
            }
        ),
        max_size=20,
    ),
    st.sampled_from(["best_vs_worst", "best_vs_random", "ranked_neighbours", "all"]),
    st.randoms(use_true_random=False),
)
@settings(max_examples=60, deadline=None)
def test_kept_and_dropped_add_up_whatever_the_order_of_rows(rows, strategy, random) -> None:
    decisions, candidates = make_rows(rows)
    listed = ["truncated", "length_ratio", "agreement", "margin", "near_duplicate_answers"]
    config = FilterConfig(strategy={"type": strategy}, filters=[{"type": name} for name in listed])
    out = apply_filters(decisions, candidates, config, seed=1).to_pylist()
    dropped = [row["reason"] for row in out if not row["kept"]]
    assert len(out) == len(rows) == len(dropped) + sum(row["kept"] for row in out)
    assert set(dropped) <= {*listed, "identical", "pair_strategy"}
    order = list(range(len(rows)))
    random.shuffle(order)
    shuffled = apply_filters(
        decisions.take(pa.array(order, pa.int64())), candidates, config, seed=1
    ).to_pylist()
    assert shuffled == [out[index] for index in order]


# Length balance


def balanced(rows: list[dict], ceiling: float, shards: int = 1) -> pa.Table:
    decisions, _ = make_rows(rows)
    bounds = np.linspace(0, len(rows), shards + 1).astype(int)
    parts = [decisions.slice(a, b - a) for a, b in pairwise(bounds)]
    rule = LengthBalance(max_share_longer=ceiling)
    cutoff = balance_cutoff([BalanceRows.of(part) for part in parts], rule)
    return pa.concat_tables([apply_balance(part, cutoff) for part in parts])


LONGER, SAME, SHORTER = ({"chosen_tokens": tokens} for tokens in (11, 10, 9))


@pytest.mark.parametrize(
    ("longer", "same", "shorter", "ceiling", "dropped"),
    [
        (6, 0, 4, 0.5, 2),
        (6, 0, 4, 0.6, 0),  # exactly at the ceiling
        (11, 0, 9, 0.55, 0),
        (12, 0, 9, 0.55, 1),  # 11 of 20
        (6, 2, 2, 0.5, 4),  # equal lengths do not count: 2 of 4 are left
        (3, 0, 0, 0.5, 3),  # nothing but longer ones: none can stay
        (3, 0, 0, 1.0, 0),
        (0, 2, 2, 0.5, 0),
        (0, 0, 0, 0.5, 0),
    ],
)
def test_the_balance_drops_the_fewest(longer, same, shorter, ceiling, dropped) -> None:
    rows = [LONGER] * longer + [SAME] * same + [SHORTER] * shorter
    found = balanced(rows, ceiling)["reason"].to_pylist()
    assert found.count("length_balance") == dropped
    assert found.count(None) == len(rows) - dropped
    assert "length_balance" not in found[longer:]


@given(
    st.lists(
        st.tuples(st.sampled_from([9, 10, 11]), st.sampled_from([0.1, 0.2, 0.3]), st.booleans()),
        max_size=40,
    ),
    st.sampled_from([0.5, 0.55, 0.6, 0.7, 0.9, 1.0]),
    st.integers(1, 4),
)
@settings(max_examples=100, deadline=None)
def test_the_balance_reaches_its_ceiling_with_the_smallest_margins(drawn, ceiling, shards) -> None:
    rows = [
        {"chosen_tokens": tokens, "margin": margin, "kept": kept,
         "reason": None if kept else "tie"}
        for tokens, margin, kept in drawn
    ]  # fmt: skip
    out = balanced(rows, ceiling, shards).to_pylist()
    assert [row["reason"] for row in out if row["reason"] != "length_balance"] == [
        reason
        for reason, row in zip((r["reason"] for r in rows), out, strict=True)
        if row["reason"] != "length_balance"
    ]
    kept = [row for row in out if row["kept"]]
    dropped = [row for row in out if row["reason"] == "length_balance"]

    def share(longer: int, total: int) -> Fraction:
        return Fraction(longer, total) if total else Fraction(0)

    longer = sum(row["chosen_tokens"] > 10 for row in kept)
    assert all(row["chosen_tokens"] > 10 for row in dropped)
    limit = Fraction(str(ceiling))
    unequal = sum(row["chosen_tokens"] != 10 for row in kept)
    assert share(longer, unequal) <= limit
    if dropped:  # one fewer would not have been enough
        assert share(longer + 1, unequal + 1) > limit
        last = max((row["margin"], row["pair_id"]) for row in dropped)
        rest = [(row["margin"], row["pair_id"]) for row in kept if row["chosen_tokens"] > 10]
        assert all(last < one for one in rest)
    assert not any(math.isnan(row["margin"]) for row in kept)


OTHER = {"rejected_policy": "other"}
"""The rejected answer is of another model, with another tokenizer."""


def test_tokens_of_two_models_do_not_compare() -> None:
    alike = {"chosen": "x" * 100, "rejected": "y" * 90, "rejected_tokens": 30}
    ratio = {"type": "length_ratio", "max": 2}
    assert reasons([{**alike, **OTHER}, alike], ratio) == [None, "length_ratio"]
    longer = {"chosen": "x" * 100, "rejected": "y" * 30, "rejected_tokens": 10, **OTHER}
    assert reasons([longer], ratio) == ["length_ratio"]
    given = {**alike, "rejected_origin": "given"}
    both_given = {**given, "chosen_origin": "reference"}
    assert reasons([given, both_given], ratio) == [None, "length_ratio"]


def test_the_balance_compares_characters_of_two_models() -> None:
    # By tokens chosen is the shorter one throughout.
    longer = {"chosen": "x" * 40, "rejected": "y" * 30, "rejected_tokens": 30, **OTHER}
    decisions, candidates = make_rows([longer] * 3)
    unbalanced = apply_filters(decisions, candidates, FilterConfig(strategy=ALL), seed=0)
    rows = BalanceRows.of(unbalanced)
    assert rows.longer.tolist() == [True] * 3
    cutoff = balance_cutoff([rows], LengthBalance(max_share_longer=0.5))
    assert apply_balance(unbalanced, cutoff)["reason"].to_pylist() == ["length_balance"] * 3


def test_across_policies_chooses_among_pairs_of_different_policies() -> None:
    rows = [
        {"prompt": "p", "margin": 0.5},
        {"prompt": "p", "margin": 0.3, "rejected_policy": "other"},
        {"prompt": "p", "margin": 0.2, "chosen_policy": "other"},
        {"prompt": "q", "margin": 0.4, "chosen_policy": "third", "rejected_policy": "third"},
    ]
    across = {"type": "across_policies"}
    aside = "pair_strategy"
    assert reasons(rows, strategy=across) == [aside, None, aside, aside]
    every = {**across, "choose": "all"}
    assert reasons(rows, strategy=every) == [aside, None, None, aside]
    assert reasons(rows, strategy={**every, "min_margin": 0.25}) == [aside, None, aside, aside]
    low = {"type": "margin", "min": 0.35}
    assert reasons(rows, low, strategy=every) == [aside, "margin", "margin", aside]


@pytest.mark.parametrize("choose", ["best_vs_worst", "best_vs_random", "ranked_neighbours", "all"])
def test_across_policies_is_the_strategy_itself_where_all_pairs_are(choose: str) -> None:
    rows = [
        {"prompt": index % 3, "margin": 0.1 * index - 0.2, "score_chosen": 0.1 * index,
         "score_rejected": 0.2, "rejected_policy": "other"}
        for index in range(9)
    ]  # fmt: skip
    alone = reasons(rows, strategy={"type": choose})
    assert reasons(rows, strategy={"type": "across_policies", "choose": choose}) == alone
    assert len(set(alone)) == 2
