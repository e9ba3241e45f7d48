"""From votes to decisions: what the votes on each pair add up to.

Works on votes only, whoever gave them, and joins by id. Three steps:

1. *Labeler*: the votes of one labeler on one pair become one verdict
   (``prefloop.labelers.jury.verdict_table``), whose probability may be calibrated to people.
2. *Jury*: the verdicts become a probability by the rule of the jury
   (``prefloop.labelers.jury.rules``).
3. *Scores*: a candidate's score is the mean, over its decided pairs, of the jury's probability
   that it is preferred, ties being 0.5: its mean win probability (the Borda or Copeland score of
   a round robin; 0.5 for a candidate without a decided pair).

Sums are rounded to 12 decimals, so that the order of the rows decides nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import compress

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from prefloop.data.arrays import Bools, Floats, Ints, as_arrow, as_numpy, as_texts
from prefloop.data.schemas import DECISION
from prefloop.labelers.base import LabelerError
from prefloop.labelers.config import Jury
from prefloop.labelers.decisions.reasons import NO_VALID_VOTE, TIE
from prefloop.labelers.jury.ensemble import ensemble_votes, pair_scores
from prefloop.labelers.jury.round_jury import RoundJury
from prefloop.labelers.jury.rules import DECIMALS, jury_p_a, settled
from prefloop.labelers.jury.verdict_table import (
    Verdicts,
    Votes,
    calibrated,
    merge_votes,
    of_labelers,
    pairs_of,
    read_votes,
    rows_in,
)
from prefloop.labelers.people import is_human, without, without_people

_REASONS = (TIE, NO_VALID_VOTE)


def decide(
    votes: pa.Table,
    pairs: pa.Table | None,
    candidates: pa.Table,
    jury: RoundJury,
    *,
    round_index: int = 0,
) -> pa.Table:
    """One decision (schema DECISION) for each row of ``pairs``, in their order.

    ``votes`` needs ``pair_id, prompt_id, a_id, b_id, labeler, order, preference, p_a, score_a,
    score_b``; ``pairs`` is what ``propose_pairs`` gives, or null for the pairs that the votes are
    about; ``candidates`` needs ``candidate_id`` and ``tokens``. ``round_index`` goes into the
    column ``round``. Undecided pairs are not kept, with the reason ``tie`` or ``no_valid_vote``,
    and have a as chosen and p_chosen exactly 0.5.

    Raises ``LabelerError`` for votes on pairs that were not proposed, unknown candidates,
    preferences, orders or probabilities that do not exist or contradict each other, and where what
    was fitted for the jury is needed and missing, or knows nothing of a labeler.
    """
    if pairs is None:
        pairs = pairs_of(votes)
    _check_pairs(pairs)
    votes = without(votes, jury.silent)
    if jury.people == "calibration":
        votes = without_people(votes)
    counted = read_votes(votes, pairs)
    verdicts = calibrated(merge_votes(counted, len(pairs)), counted.labelers, jury.calibrators)
    weight = np.array([jury.weights.get(name, 1.0) for name in counted.labelers])

    # NaN where nobody who counts gave a valid vote.
    def by_labelers(members: Bools) -> Floats:
        """The jury's P(a preferred to b) [P] by some labelers (bool [L])."""
        names = tuple(compress(counted.labelers, members))
        if jury.config.rule != "ensemble":
            of_members = of_labelers(verdicts, members)
            return jury_p_a(of_members, names, weight[members], jury.config, jury.fitted)
        scores = pair_scores(votes, counted, len(pairs))[:, members]
        p_a, seated = ensemble_votes(
            scores, verdicts.valid[:, members], names, weight[members], jury.config.penalty,
            jury.fitted,
        )  # fmt: skip
        return settled(p_a, np.zeros(len(p_a), np.bool_), seated, jury.config)

    if jury.people == "override":
        p_a = _overridden(by_labelers, verdicts, counted.labelers, weight, jury)
    else:
        p_a = by_labelers(np.ones(len(counted.labelers), np.bool_))

    undecided = np.isnan(p_a)
    p_a = np.where(undecided, 0.5, p_a)
    tie = ~undecided & (p_a == 0.5)
    a_wins = p_a >= 0.5  # for ties and undecided pairs: a stands first, as in the votes
    a, b = _rows_of_both(candidates["candidate_id"], pairs)
    scores = _scores(a, b, p_a, ~undecided, len(candidates))
    chosen, rejected = np.where(a_wins, a, b), np.where(a_wins, b, a)
    score_chosen, score_rejected = scores[chosen], scores[rejected]
    tokens = as_numpy(candidates["tokens"])
    kept = ~tie & ~undecided
    mask = as_arrow(a_wins)
    columns = {
        "pair_id": pairs["pair_id"],
        "prompt_id": pairs["prompt_id"],
        "round": np.full(len(pairs), round_index, np.int32),
        "chosen_id": pc.if_else(mask, pairs["a_id"], pairs["b_id"]),
        "rejected_id": pc.if_else(mask, pairs["b_id"], pairs["a_id"]),
        "p_chosen": np.where(a_wins, p_a, 1 - p_a),
        "score_chosen": score_chosen,
        "score_rejected": score_rejected,
        "margin": np.round(score_chosen - score_rejected, DECIMALS),
        "quality_chosen": _quality(votes, counted, verdicts, a_wins),
        "agreement": _agreement(verdicts, np.sign(p_a - 0.5).astype(np.int64)),
        "position_consistent": _consistent(verdicts),
        "chosen_tokens": tokens[chosen],
        "rejected_tokens": tokens[rejected],
        "labelers": _names(counted.labelers, verdicts.valid),
        "kept": kept,
        "reason": as_texts(_REASONS).take(as_arrow(undecided.astype(np.int8), mask=kept)),
        "chosen_chars": pa.nulls(len(pairs), pa.int32()),
        "rejected_chars": pa.nulls(len(pairs), pa.int32()),
    }
    arrays = (columns[name] for name in DECISION.names)
    return pa.table(
        [as_arrow(one) if isinstance(one, np.ndarray) else one for one in arrays], schema=DECISION
    )


def _overridden(
    by_labelers: Callable[[Bools], Floats],
    verdicts: Verdicts,
    labelers: tuple[str, ...],
    weight: Floats,
    jury: RoundJury,
) -> Floats:
    """The jury's P(a preferred to b) [P], and where people voted, that of their majority."""
    human = np.array([is_human(name) for name in labelers], np.bool_)
    p_a = by_labelers(~human)
    if not human.any():
        return p_a
    majority = Jury(rule="majority", tie_band=jury.config.tie_band)
    people = of_labelers(verdicts, human)
    by_people = jury_p_a(people, tuple(compress(labelers, human)), weight[human], majority)
    found: Floats = np.where(np.isnan(by_people), p_a, by_people)
    return found


def _check_pairs(pairs: pa.Table) -> None:
    if pc.any(pc.equal(pairs["a_id"], pairs["b_id"]), min_count=0).as_py():
        raise LabelerError("a pair compares a candidate with itself: chosen would be rejected")
    if pc.count_distinct(pairs["pair_id"]).as_py() != len(pairs):
        raise LabelerError("a pair is proposed twice")


def _rows_of_both(ids: pa.ChunkedArray, pairs: pa.Table) -> list[Ints]:
    """Where in ``ids`` a and b of each pair are."""
    both = pa.chunked_array([*pairs["a_id"].chunks, *pairs["b_id"].chunks], ids.type)
    rows = rows_in(both, ids.combine_chunks(), "a pair names a candidate that is not there")
    return np.split(rows, [len(pairs)])


def _scores(a: Ints, b: Ints, p_a: Floats, decided: Bools, candidates: int) -> Floats:
    """Mean win probability of each candidate over its decided pairs [candidates]."""
    of = np.concatenate([a[decided], b[decided]])
    won = np.concatenate([p_a[decided], 1 - p_a[decided]])
    played = np.bincount(of, minlength=candidates)
    total = np.bincount(of, weights=won, minlength=candidates)
    return np.round(np.where(played > 0, total / np.maximum(played, 1), 0.5), DECIMALS)


def _quality(votes: pa.Table, counted: Votes, verdicts: Verdicts, a_wins: Bools) -> pa.Array:
    """Mean absolute score of the chosen answer over the labelers that gave one [P]."""
    of_a = a_wins[counted.pair] ^ counted.flipped
    score = np.where(of_a, as_numpy(votes["score_a"]), as_numpy(votes["score_b"]))
    score = score.astype(np.float64)
    rows = np.isfinite(score) & verdicts.valid.ravel()[counted.cell]
    cell, size = counted.cell[rows], verdicts.valid.size
    given = np.bincount(cell, minlength=size).reshape(verdicts.valid.shape)
    total = np.bincount(cell, weights=score[rows], minlength=size).reshape(given.shape)
    labelers = (given > 0).sum(axis=1)
    mean = (total / np.maximum(given, 1)).sum(axis=1) / np.maximum(labelers, 1)
    return as_arrow(np.round(mean, DECIMALS), mask=labelers == 0)


def _agreement(verdicts: Verdicts, decision: Ints) -> Floats:
    """Share of the labelers with a valid verdict whose verdict is the decision [P]."""
    same = verdicts.valid & (verdicts.verdict == decision[:, None])
    agreement: Floats = same.sum(axis=1) / np.maximum(verdicts.valid.sum(axis=1), 1)
    return agreement


def _consistent(verdicts: Verdicts) -> pa.Array:
    """Whether everyone who saw both orders said the same in both [P]; null where nobody did."""
    changed = np.asarray((verdicts.swapped & ~verdicts.unanimous).any(axis=1), np.bool_)
    seen = np.asarray(verdicts.swapped.any(axis=1), np.bool_)
    return as_arrow(~changed, mask=~seen)


def _names(labelers: tuple[str, ...], valid: Bools) -> pa.Array:
    """The labelers with a valid verdict on each pair, by name [P]."""
    ends = np.concatenate([[0], np.cumsum(valid.sum(axis=1))]).astype(np.int32)
    who = as_texts(labelers).take(as_arrow(np.nonzero(valid)[1]))
    return pa.ListArray.from_arrays(as_arrow(ends), who)
