from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prefloop.data.hashing import content_id, pair_id
from prefloop.data.schemas import DECISION
from prefloop.labelers.base import LabelerError
from prefloop.labelers.config import (
    AllPairs,
    BestVsLow,
    BestVsRandom,
    BestVsWorst,
    CorrectVsIncorrect,
    PairStrategy,
    RankedNeighbours,
)
from prefloop.labelers.decisions.pairs import (
    _first_of_each,
    id_keys,
    propose_pairs,
    select_pairs,
)


def make_candidates(counts: list[int], shuffle: int | None = None) -> pa.Table:
    """A table with ``counts[i]`` candidates of prompt i, in the order of a seeded shuffle."""
    rows = [
        (content_id("candidate", prompt, index), content_id("prompt", prompt))
        for prompt, count in enumerate(counts)
        for index in range(count)
    ]
    if shuffle is not None:
        np.random.default_rng(shuffle).shuffle(rows)
    columns = list(zip(*rows, strict=True)) or [[], []]
    return pa.table(
        [pa.array(column, pa.string()) for column in columns], ["candidate_id", "prompt_id"]
    )


def as_rows(pairs: pa.Table) -> set[tuple[str, ...]]:
    return {tuple(row.values()) for row in pairs.to_pylist()}


def test_all_pairs_of_each_prompt_and_their_ids() -> None:
    counts = [4, 1, 0, 2, 3]
    pairs = propose_pairs(make_candidates(counts, shuffle=1), per_prompt=None, seed=0)
    expected = set()
    for prompt, count in enumerate(counts):
        name = content_id("prompt", prompt)
        ids = sorted(content_id("candidate", prompt, index) for index in range(count))
        expected |= {
            (pair_id(name, a, b), name, a, b) for i, a in enumerate(ids) for b in ids[i + 1 :]
        }
    assert as_rows(pairs) == expected
    assert len(pairs) == 6 + 0 + 1 + 3
    assert pairs["prompt_id"].to_pylist() == sorted(pairs["prompt_id"].to_pylist())


@given(
    counts=st.lists(st.integers(0, 5), max_size=8),
    shuffle=st.integers(0, 1000),
    per_prompt=st.none() | st.integers(1, 7),
    seed=st.integers(0, 3),
)
@settings(max_examples=60, deadline=None)
def test_proposals_do_not_depend_on_the_order_of_rows(
    counts: list[int], shuffle: int, per_prompt: int | None, seed: int
) -> None:
    """ANCHORS 5: ids, not positions."""
    plain = propose_pairs(make_candidates(counts), per_prompt=per_prompt, seed=seed)
    other = propose_pairs(make_candidates(counts, shuffle), per_prompt=per_prompt, seed=seed)
    assert plain.equals(other)
    every = [count * (count - 1) // 2 for count in counts]
    assert len(plain) == sum(min(one, per_prompt or one) for one in every)
    assert as_rows(plain) <= as_rows(
        propose_pairs(make_candidates(counts), per_prompt=None, seed=seed)
    )


@given(
    counts=st.lists(st.integers(0, 6), max_size=6),
    shuffle=st.integers(0, 1000),
    per_prompt=st.none() | st.integers(1, 7),
)
@settings(max_examples=60, deadline=None)
def test_pairs_across_policies_are_drawn_of_no_others(
    counts: list[int], shuffle: int, per_prompt: int | None
) -> None:
    def of(candidates: pa.Table, **which: Any) -> pa.Table:
        writers = [f"policy {one[0]}" for one in candidates["candidate_id"].to_pylist()]
        writer.update(zip(candidates["candidate_id"].to_pylist(), writers, strict=True))
        table = candidates.append_column("policy", pa.array(writers, pa.string()))
        return propose_pairs(table, seed=1, across_policies=True, **which)

    writer: dict[str, str] = {}
    plain = of(make_candidates(counts), per_prompt=per_prompt)
    assert plain.equals(of(make_candidates(counts, shuffle), per_prompt=per_prompt))
    every = propose_pairs(make_candidates(counts), per_prompt=None, seed=1)
    across = {row for row in as_rows(every) if writer[row[2]] != writer[row[3]]}
    assert as_rows(plain) <= across
    for prompt in {row[1] for row in across}:
        number = sum(row[1] == prompt for row in across)
        drawn = sum(row[1] == prompt for row in as_rows(plain))
        assert drawn == min(number, per_prompt or number)


def test_a_draw_depends_on_the_seed_and_favours_no_pair() -> None:
    candidates = make_candidates([3] * 600)
    draws = [propose_pairs(candidates, per_prompt=1, seed=seed) for seed in (0, 1)]
    assert 120 < len(as_rows(draws[0]) & as_rows(draws[1])) < 280
    every = propose_pairs(candidates, per_prompt=None, seed=0)["pair_id"].to_pylist()
    position = {pair: index % 3 for index, pair in enumerate(every)}
    drawn = np.bincount([position[pair] for pair in draws[0]["pair_id"].to_pylist()])
    assert drawn.min() > 150


def test_a_candidate_that_occurs_twice_is_refused() -> None:
    once = make_candidates([2])
    with pytest.raises(LabelerError, match="occurs twice"):
        propose_pairs(pa.concat_tables([once, once]), per_prompt=None, seed=0)


@pytest.mark.parametrize("bad", ["c1", "g" * 32, "A" * 32, "", "é" * 16])
def test_ids_are_content_hashes(bad: str) -> None:
    with pytest.raises(LabelerError, match="not a content hash"):
        id_keys(pa.array([content_id("x"), bad]))


def test_keys_have_the_order_of_the_ids() -> None:
    ids = sorted(content_id(index) for index in range(500))
    keys = id_keys(pa.chunked_array([pa.array(["0" * 32, *ids[:200]]).slice(1), ids[200:]]))
    assert (np.diff(keys.astype(object)) > 0).all()
    assert keys[0] == int(ids[0][:16], 16)


# Strategies


def make_decisions(
    scores: dict[str, tuple[float, float]], kept: list[bool] | None = None, prompt: str = "p"
) -> pa.Table:
    """Decisions with these (score of chosen, score of rejected), by a name for the pair."""
    rows = []
    for index, (name, (chosen, rejected)) in enumerate(scores.items()):
        keep = kept[index] if kept else True
        rows.append(
            {
                "pair_id": content_id("pair", name), "prompt_id": content_id(prompt), "round": 0,
                "chosen_id": content_id(name, "c"), "rejected_id": content_id(name, "r"),
                "p_chosen": 0.9, "score_chosen": chosen, "score_rejected": rejected,
                "margin": chosen - rejected, "quality_chosen": None, "agreement": 1.0,
                "position_consistent": None, "chosen_tokens": 5, "rejected_tokens": 5,
                "labelers": ["v"], "kept": keep, "reason": None if keep else "margin",
            }
        )  # fmt: skip
    return pa.Table.from_pylist(rows, schema=DECISION)


RANKING = {"ab": (0.9, 0.6), "ac": (0.9, 0.3), "ad": (0.9, 0.1), "bc": (0.6, 0.3),
           "bd": (0.6, 0.1), "cd": (0.3, 0.1)}  # fmt: skip


def selected(strategy: PairStrategy, kept: list[bool] | None = None, seed: int = 0) -> set[str]:
    mask = select_pairs(make_decisions(RANKING, kept), strategy, seed=seed)
    return {name for name, keep in zip(RANKING, mask, strict=True) if keep}


def test_best_against_worst() -> None:
    assert selected(BestVsWorst()) == {"ad"}
    assert selected(BestVsWorst(), [True, True, False, True, True, True]) == {"ac"}


def test_best_against_a_random_other() -> None:
    draws = [selected(BestVsRandom(), seed=seed) for seed in range(60)]
    assert set().union(*draws) == {"ab", "ac", "ad"}
    assert all(len(draw) == 1 for draw in draws)
    assert selected(BestVsRandom(), [False] * 3 + [True] * 3) <= {"bc", "bd"}


def test_neighbours_in_the_ranking() -> None:
    assert selected(RankedNeighbours()) == {"ab", "bc", "cd"}
    # Without the pairs of b, a and c are neighbours.
    assert selected(RankedNeighbours(), [False, True, True, False, False, True]) == {"ac", "cd"}


def test_equal_scores_are_one_place_in_the_ranking() -> None:
    decisions = make_decisions({"one": (0.9, 0.5), "two": (0.9, 0.2), "level": (0.5, 0.5)})
    assert select_pairs(decisions, RankedNeighbours(), seed=0).tolist() == [True, False, False]
    upside_down = make_decisions({"one": (0.2, 0.9)})
    assert select_pairs(upside_down, RankedNeighbours(), seed=0).tolist() == [False]


def test_all_pairs_above_a_margin() -> None:
    assert selected(AllPairs()) == set(RANKING)
    assert selected(AllPairs(min_margin=0.3)) == {"ab", "ac", "ad", "bc", "bd"}  # 0.6 - 0.3 counts


def test_nothing_kept_nothing_selected() -> None:
    for strategy in (
        BestVsWorst(), BestVsLow(), BestVsRandom(), CorrectVsIncorrect(), RankedNeighbours(),
        AllPairs(),
    ):  # fmt: skip
        assert selected(strategy, [False] * 6) == set()
        assert not len(select_pairs(DECISION.empty_table(), strategy, seed=0))


def round_robin(
    rewards: dict[str, float], *, win: dict[str, float] | None = None, prompt: str = "p"
) -> pa.Table:
    """Decisions on all pairs of answers, the higher reward chosen; scores are those in ``win``, or
    shares of the others that an answer beats."""
    names = sorted(rewards, key=lambda name: -rewards[name])
    score = win or {name: 1 - at / (len(names) - 1) for at, name in enumerate(names)}
    pairs = [(a, b) for at, a in enumerate(names) for b in names[at + 1 :]]
    table = make_decisions({f"{a}>{b}": (score[a], score[b]) for a, b in pairs}, prompt=prompt)
    for side, which in (("chosen_id", 0), ("rejected_id", 1)):
        ids = pa.array([content_id(prompt, pair[which]) for pair in pairs])
        table = table.set_column(table.column_names.index(side), table.schema.field(side), ids)
    return table


def chosen_low(
    rewards: dict[str, float], strategy: PairStrategy, *, absolute: bool = True, **more: Any
) -> str:
    decisions = round_robin(rewards, **more)
    known = {content_id("p", name): reward for name, reward in rewards.items()} if absolute else {}
    mask = select_pairs(decisions, strategy, seed=0, rewards=known)
    [row] = decisions.filter(pa.array(mask)).to_pylist()
    name = {content_id("p", one): one for one in rewards}
    return f"{name[row['chosen_id']]}>{name[row['rejected_id']]}"


def test_best_against_the_one_at_mean_minus_two_deviations() -> None:
    """Mean 0, sum of squares 9 + 9 + 4 x 1 + 4 + 9 + 25 = 60 over 13: deviation 2.148."""
    rewards = {
        "a": 3.0, "b": 1.0, "c": 1.0, "d": 1.0, "e": 1.0, "f": -2.0, "g": 3.0, "h": 0.0,
        "i": 0.0, "j": 0.0, "k": 0.0, "l": -3.0, "m": -5.0,
    }  # fmt: skip
    # Two below is -4.297: m is 0.70 away, and l 1.30.
    assert chosen_low(rewards, BestVsLow()).endswith(">m")
    # One below is -2.148: f, although l and m are worse.
    assert chosen_low(rewards, BestVsLow(deviations=1.0)).endswith(">f")


def test_an_outlier_is_not_taken() -> None:
    """0, 1 .. 9, -17 and -30: mean -0.167, mean square 1474 / 12, deviation 11.08, so -22.33: -17
    is 5.3 away, and the worst 7.7."""
    rewards = {f"n{at}": float(at) for at in range(10)} | {"x": -30.0, "y": -17.0}
    assert chosen_low(rewards, BestVsLow()) == "n9>y"
    assert chosen_low(rewards, BestVsWorst()) == "n9>x"


def test_of_few_answers_it_is_the_worst() -> None:
    """Nothing of 5 answers lies beyond -2 deviations, so the worst is the nearest."""
    rewards = {"a": 4.0, "b": 3.5, "c": 3.0, "d": 1.0, "e": -9.0}
    assert chosen_low(rewards, BestVsLow()) == chosen_low(rewards, BestVsWorst()) == "a>e"


def test_without_absolute_scores_it_goes_by_normal_scores() -> None:
    """Of 100 answers that always beat the next ones, the mean of normal scores is 0 and their
    deviation nearly 1: two below is the 2.3rd of a hundred from below, the third or second last."""
    rewards = {f"n{at:03d}": float(-at) for at in range(100)}
    found = chosen_low(rewards, BestVsLow(), absolute=False)
    assert found == "n000>n097"
    # By the rewards, which are spread evenly, nothing is that far below: the worst.
    assert chosen_low(rewards, BestVsLow()) == "n000>n099"


def test_the_low_answer_is_one_whose_pair_is_left() -> None:
    rewards = {"a": 4.0, "b": 3.0, "c": 0.0, "d": -4.0}
    decisions = round_robin(rewards)
    names = [f"{a}>{b}" for a, b in ("ab", "ac", "ad", "bc", "bd", "cd")]
    known = {content_id("p", name): reward for name, reward in rewards.items()}

    def left(kept: set[str]) -> str:
        flags = pa.array([name in kept for name in names])
        place = decisions.column_names.index("kept")
        some = decisions.set_column(place, decisions.schema.field("kept"), flags)
        mask = select_pairs(some, BestVsLow(), seed=0, rewards=known)
        [name] = [name for name, keep in zip(names, mask, strict=True) if keep]
        return name

    assert left(set(names)) == "a>d"
    assert left({"a>b", "a>c", "b>d"}) == "a>c"  # the best's pairs, and of these the lowest
    assert left({"b>c", "b>d", "c>d"}) == "b>d"


@given(order=st.permutations(range(12)), seed=st.integers(0, 3))
@settings(max_examples=30, deadline=None)
def test_selection_follows_ids_and_breaks_ties_by_them(order: list[int], seed: int) -> None:
    """ANCHORS 9: equal margins are not decided by who comes first."""
    level = {f"x{i}": (0.75, 0.25) for i in range(6)}
    decisions = pa.concat_tables(
        [make_decisions(level, prompt="p"), make_decisions(RANKING, prompt="q")]
    )
    for strategy in (BestVsWorst(), BestVsLow(), BestVsRandom(), RankedNeighbours(), AllPairs()):
        mask = select_pairs(decisions, strategy, seed=seed)
        shuffled = select_pairs(decisions.take(order), strategy, seed=seed)
        assert shuffled.tolist() == mask[order].tolist()
        if isinstance(strategy, BestVsWorst):
            kept = decisions.filter(pa.array(mask))["pair_id"].to_pylist()
            lowest = min(content_id("pair", name) for name in level)
            assert sorted(kept) == sorted([lowest, content_id("pair", "ad")])


def right_and_wrong(rewards: dict[str, float], lengths: dict[str, int], **config: Any) -> set[str]:
    names = {content_id("p", one): one for one in rewards}
    table = round_robin(rewards)
    for side in ("chosen", "rejected"):
        tokens = [lengths[names[one]] for one in table[f"{side}_id"].to_pylist()]
        at = table.column_names.index(f"{side}_tokens")
        table = table.set_column(at, table.schema.field(at), pa.array(tokens, pa.int32()))
    known = {content_id("p", name): reward for name, reward in rewards.items()}
    mask = select_pairs(table, CorrectVsIncorrect(**config), seed=0, rewards=known)
    return {
        f"{names[row['chosen_id']]}>{names[row['rejected_id']]}"
        for row in table.filter(pa.array(mask)).to_pylist()
    }


def test_right_answers_against_wrong_ones_of_like_length() -> None:
    rewards = {"a": 1.0, "b": 1.0, "c": 0.0, "d": 0.5, "e": 0.0}
    lengths = {"a": 100, "b": 20, "c": 19, "d": 90, "e": 300}
    assert right_and_wrong(rewards, lengths) == {"b>c"}  # 5 % apart, and 11 % a from d
    assert right_and_wrong(rewards, lengths, pairs=2) == {"b>c", "a>d"}
    assert right_and_wrong(rewards, lengths, correct=0.5, pairs=9) == {
        "a>c", "a>e", "b>c", "b>e", "d>c", "d>e",
    }  # fmt: skip


def test_a_prompt_that_is_all_right_or_all_wrong_has_no_pair() -> None:
    lengths = {"a": 1, "b": 1}
    assert right_and_wrong({"a": 1.0, "b": 1.0}, lengths) == set()
    assert right_and_wrong({"a": 0.9, "b": 0.0}, lengths) == set()
    assert select_pairs(round_robin({"a": 1.0, "b": 0.0}), CorrectVsIncorrect(), seed=0).sum() == 0


@pytest.mark.parametrize("wrong", ["A" * 32, "g" + 31 * "0", 15 * "0" + "F" + 16 * "0", "0" * 31])
def test_what_is_no_content_hash_is_refused(wrong: str) -> None:
    fine = content_id("fine")
    assert id_keys(pa.array([fine])).tolist() == [int(fine[:16], 16)]
    with pytest.raises(LabelerError, match="32 hexadecimal characters"):
        id_keys(pa.array([fine, wrong]))


@given(
    st.lists(
        st.tuples(
            st.integers(0, 4), st.sampled_from([-0.5, 0.0, 0.25, np.inf, np.nan]), st.integers(0, 3)
        ),
        min_size=1, max_size=30, unique_by=lambda row: (row[0], row[2]),
    )
)  # fmt: skip
def test_the_first_of_each_group_is_that_of_a_sorted_list(rows: list[tuple]) -> None:
    group, value, key = (np.array(column) for column in zip(*rows, strict=True))
    found = _first_of_each(group.astype(np.int32), value, key.astype(np.uint64))
    worst = [(g, np.inf if np.isnan(v) else v, k) for g, v, k in rows]
    first = {g: min(row for row in worst if row[0] == g) for g in group}
    assert found.tolist() == [row == first[row[0]] for row in worst]
