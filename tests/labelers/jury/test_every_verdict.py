"""Votes read with their pairs in one go, and all verdicts of a run."""

from __future__ import annotations

import re
from dataclasses import asdict, replace

import numpy as np
import pyarrow as pa
import pytest

from prefloop.data.schemas import VOTE
from prefloop.labelers.base import LabelerError, Vote
from prefloop.labelers.jury.every_verdict import every_verdict
from prefloop.labelers.jury.verdict_table import (
    VERDICT_COLUMNS,
    merge_votes,
    pairs_of,
    position_bias,
    prompts_of,
    read_votes,
    read_votes_and_pairs,
)
from prefloop.labelers.statistics.agreement import MISSING

SWAP = {"a": "b", "b": "a", "ab": "ba", "ba": "ab"}


def votes(seed: int, *, prompts: int = 6, first: int = 0) -> list[Vote]:
    """In no order: a judge in both orders and a verifier, a fifth of them with a for b."""
    draw = np.random.default_rng(seed)
    found = []
    for prompt in range(first, first + prompts):
        for pair in range(int(draw.integers(1, 5))):
            for labeler, orders in (("judge", ("ab", "ba")), ("verifier", ("none",))):
                for order in orders:
                    said = str(draw.choice(["a", "b", "tie", "invalid"]))
                    p_a = {"a": 0.9, "b": 0.2}.get(said) if labeler == "judge" else None
                    vote = Vote(
                        pair_id=f"pair {prompt} {pair}", prompt_id=f"prompt {prompt}", round=0,
                        a_id=f"one {prompt} {pair}", b_id=f"other {prompt} {pair}",
                        labeler=labeler, order=order, preference=said, p_a=p_a,
                    )  # fmt: skip
                    found.append(turned(vote) if draw.random() < 0.2 else vote)
    return [found[place] for place in draw.permutation(len(found))]


def turned(vote: Vote) -> Vote:
    return replace(
        vote,
        a_id=vote.b_id,
        b_id=vote.a_id,
        order=SWAP.get(vote.order, vote.order),
        preference=SWAP.get(vote.preference, vote.preference),
        p_a=None if vote.p_a is None else 1 - vote.p_a,
    )


def table_of(rows: list[Vote]) -> pa.Table:
    return pa.Table.from_pylist([asdict(row) for row in rows], VOTE).select(VERDICT_COLUMNS)


@pytest.mark.parametrize("seed", range(3))
def test_votes_with_their_pairs_are_those_by_the_pairs(seed: int) -> None:
    table = table_of(votes(seed))
    read, pairs = read_votes_and_pairs(table)
    assert pairs.equals(pairs_of(table))
    expected = read_votes(table, pairs)
    assert read.labelers == expected.labelers
    assert read.flipped.any()
    for name, values in vars(read).items():
        assert np.array_equal(values, vars(expected)[name]), name
    seen = dict.fromkeys(table["pair_id"].to_pylist())
    assert pairs["pair_id"].to_pylist() == list(seen)


def test_no_votes_are_on_no_pairs() -> None:
    read, pairs = read_votes_and_pairs(table_of([]))
    assert (len(read.cell), len(pairs)) == (0, 0)


@pytest.mark.parametrize("place", [1, 7])
def test_a_vote_on_other_candidates_than_its_pair_is_named(place: int) -> None:
    rows = [vote for vote in votes(0) if vote.labeler == "judge"]
    rows = sorted(rows, key=lambda vote: vote.pair_id)
    rows[place] = replace(rows[place], b_id="a third one")
    named = re.escape(f"a vote on pair {rows[place].pair_id} is about other candidates")
    with pytest.raises(LabelerError, match=named):
        read_votes_and_pairs(table_of(rows))


def test_every_verdict_of_all_tables() -> None:
    """Two rounds over the same prompts, the second of which has a labeler more."""
    more = [replace(vote, labeler="another") for vote in votes(5) if vote.labeler == "verifier"]
    first, second = table_of(votes(4)), table_of(more + votes(5))
    found = every_verdict([first, second])
    assert found.labelers == ("another", "judge", "verifier")
    assert found.codes.dtype == np.int8
    at, invalid = 0, 0
    words = pa.chunked_array([*pairs_of(first)["prompt_id"].chunks,
                              *pairs_of(second)["prompt_id"].chunks]).to_pylist()  # fmt: skip
    for table, names in ((first, ["judge", "verifier"]), (second, list(found.labelers))):
        pairs = pairs_of(table)
        read = read_votes(table, pairs)
        verdicts = merge_votes(read, len(pairs))
        part = found.codes[at : at + len(pairs)]
        for column, name in enumerate(found.labelers):
            if name not in names:
                assert (part[:, column] == MISSING).all()
                continue
            index = read.labelers.index(name)
            said = np.where(verdicts.valid, 1 - verdicts.verdict, MISSING)[:, index]
            assert part[:, column].tolist() == said.tolist()
        invalid += int((~verdicts.valid).sum())
        at += len(pairs)
    assert (len(found.codes), found.invalid) == (at, invalid)
    numbers = dict(zip(words, found.prompts.tolist(), strict=True))
    assert [numbers[word] for word in words] == found.prompts.tolist()
    assert sorted(numbers.values()) == list(range(6))
    bias = [
        position_bias(read, merge_votes(read, len(pairs)), prompts_of(pairs))["judge"]
        for read, pairs in map(read_votes_and_pairs, (first, second))
    ]
    assert found.position == {"judge": bias[0] + bias[1]}


def test_no_tables_have_no_verdicts() -> None:
    found = every_verdict([])
    assert (found.labelers, found.codes.shape, len(found.prompts)) == ((), (0, 0), 0)
