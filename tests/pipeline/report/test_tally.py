"""The distributions of the report, against hand counts and the whole-table functions."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from prefloop.data.schemas import VOTE
from prefloop.labelers.jury.verdict_table import (
    merge_votes,
    pairs_of,
    position_bias,
    prompts_of,
    read_votes,
)
from prefloop.pipeline.report.tally import (
    MARGIN_EDGES,
    AgreementTally,
    LengthCounts,
    tally_run,
)
from tests.helpers.synthetic_run import JUDGE, write_run


def test_blocks_add_up_to_the_whole_table(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", rounds=1)
    tally = tally_run(run).votes.labelers
    votes = run.round(0).votes.table()
    pairs = pairs_of(votes)
    read = read_votes(votes, pairs)
    expected = position_bias(read, merge_votes(read, len(pairs)), prompts_of(pairs))
    assert len(run.round(0).votes.indices()) > 1
    assert tally[JUDGE].position == expected[JUDGE]
    assert tally[JUDGE].position.first_share is not None
    assert tally["verifier"].position.first_share is None


def test_ties_have_no_chosen_answer(tmp_path: Path) -> None:
    tally = tally_run(write_run(tmp_path / "run", rounds=2, blocks=1))
    decisions = tally.decisions
    assert decisions.undecided == 16
    assert decisions.before.pairs == decisions.margins_before.sum() == 32
    assert decisions.after.pairs == decisions.margins_after.sum() == 16
    assert decisions.agreement_before.sum() == 48
    assert set(tally.rounds) == {0, 1}


def decided(chosen: list[int], rejected: list[int], chars: tuple[int, int] | None = None):
    columns = {"chosen_tokens": chosen, "rejected_tokens": rejected}
    for place, side in enumerate(("chosen", "rejected")):
        columns[f"{side}_chars"] = [chars and chars[place]] * len(chosen)
    return pa.table({name: pa.array(column, pa.int32()) for name, column in columns.items()})


def test_answers_of_two_models_are_longer_by_characters() -> None:
    lengths = LengthCounts()
    lengths.add(decided([3], [9], chars=(40, 30)))
    assert (lengths.chosen_longer, lengths.rejected_longer) == (1, 0)
    assert (lengths.chosen.tolist()[3], lengths.rejected.tolist()[9]) == (1, 1)


def test_lengths_grow_and_share_leaves_equal_lengths_out() -> None:
    lengths = LengthCounts()
    lengths.add(decided([3, 5, 5], [2, 5, 9]))
    lengths.add(decided([12], [1]))
    assert lengths.pairs == 4
    assert lengths.share_chosen_longer == pytest.approx(2 / 3)
    assert lengths.chosen.tolist() == [0, 0, 0, 1, 0, 2, 0, 0, 0, 0, 0, 0, 1]
    assert lengths.rejected[9] == 1
    assert LengthCounts().share_chosen_longer is None


def test_kappa_by_hand() -> None:
    # 20 + 15 of 50 agree: 0.7. By chance 25/50 * 30/50 + 25/50 * 20/50 = 0.5. (0.7 - 0.5) / 0.5.
    tally = AgreementTally(np.array([[20, 0, 5], [0, 0, 0], [10, 0, 15]]))
    assert tally.observed == pytest.approx(0.7)
    assert tally.kappa == pytest.approx(0.4)
    # Which answer is a means nothing: both always for a is as good as both always right.
    assert AgreementTally(np.diag([7, 0, 0])).kappa == pytest.approx(1.0)
    assert AgreementTally(np.diag([0, 7, 0])).kappa is None


def test_an_invalid_order_makes_a_labeler_abstain(tmp_path: Path) -> None:
    tally = tally_run(write_run(tmp_path / "run", rounds=1, blocks=1)).votes
    # 24 pairs, of which the first prompt's three have an invalid vote of the judge.
    assert tally.agreements[JUDGE, "verifier"].pairs == 21


def test_votes_may_name_a_and_b_the_other_way_round(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", rounds=1, blocks=1)
    before = tally_run(run).votes
    rows = run.round(0).votes.read(0).to_pylist()
    swap = {"a": "b", "b": "a", "ab": "ba", "ba": "ab"}
    for row in rows[::2]:
        row["a_id"], row["b_id"] = row["b_id"], row["a_id"]
        row["preference"] = swap.get(row["preference"], row["preference"])
        row["order"] = swap.get(row["order"], row["order"])
        row["p_a"] = None if row["p_a"] is None else 1 - row["p_a"]
    run.round(0).votes.replace(0, pa.Table.from_pylist(rows, VOTE))
    after = tally_run(run).votes
    assert after.labelers == before.labelers
    assert after.agreements.keys() == before.agreements.keys()
    for key, agreement in after.agreements.items():
        assert agreement.kappa == pytest.approx(before.agreements[key].kappa)


def test_margin_bins_hold_their_lower_edge() -> None:
    counts = np.histogram(np.round([0.1 + 0.2], 9), np.round(MARGIN_EDGES, 9))[0]
    assert MARGIN_EDGES[int(counts.argmax())] == pytest.approx(0.3)
