"""From votes to decisions: what the votes on each pair add up to.

Works on votes only, whoever gave them, and joins by id. Three steps:

1. *Labeler*: the votes of one labeler on one pair become one verdict. Votes that all say the same
   are that verdict; votes that contradict each other (a judge that changed its mind when the
   answers were swapped) are a tie; one invalid vote makes the labeler abstain. Its probability is
   the mean of its votes' (1, 0.5, 0 where a vote has none), and 0.5 where the verdict is a tie.
2. *Jury*: verdicts become a decision, by weighted mean of probabilities or by weighted majority.
3. *Scores*: a candidate's score is the mean, over its decided pairs, of the jury's probability
   that it is preferred, ties being 0.5: its mean win probability (the Borda or Copeland score of
   a round robin; 0.5 for a candidate without a decided pair).

Sums are rounded to 12 decimals, so that the order of the rows decides nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from data.schemas import DECISION
from labelers.base import LabelerError
from labelers.config import Jury

TIE = "tie"
NO_VALID_VOTE = "no_valid_vote"

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
Ints = NDArray[np.int64]

_PREFERENCES = pa.array(["a", "b", "tie", "invalid"])
_A, _B, _TIE, _INVALID = range(4)
_ORDERS = pa.array(["ab", "ba", "none"])
_AB, _BA = 0, 1
_REASONS = pa.array([TIE, NO_VALID_VOTE])
_DECIMALS = 12
_ROUNDING = 1e-9


@dataclass(frozen=True)
class PositionBias:
    """How a labeler's verdicts depend on the order in which answers were shown."""

    shown: int
    """Valid votes, without ties, for which an order was shown."""
    first_share: float | None
    """Share of those that prefer the answer shown first; 0.5 is unbiased, null without votes."""
    swapped: int
    """Pairs with a valid vote in both orders."""
    consistency: float | None
    """Share of those with the same verdict in both."""


@dataclass(frozen=True)
class _Votes:
    """V votes on P pairs by L labelers, as numbers; ``preference`` and ``p_a`` are about the
    pair's a and b, also where the vote itself has the two the other way round."""

    labelers: tuple[str, ...]
    pair: Ints  # [V]
    cell: Ints  # [V], pair * L + labeler
    preference: Ints  # [V]
    p_a: Floats  # [V], 0.5 for ties and invalid votes without one
    order: Ints  # [V]
    flipped: Bools  # [V]


@dataclass(frozen=True)
class _Verdicts:
    """What each labeler says about each pair; all arrays are [P, L]."""

    valid: Bools
    verdict: Ints  # 1: a, 0: tie, -1: b
    p_a: Floats
    swapped: Bools  # valid votes in both orders
    unanimous: Bools


def decide(
    votes: pa.Table,
    pairs: pa.Table | None,
    candidates: pa.Table,
    *,
    jury: Jury,
    weights: Mapping[str, float] | None = None,
    round_index: int = 0,
) -> pa.Table:
    """One decision (schema DECISION) for each row of ``pairs``, in their order.

    ``votes`` needs ``pair_id, prompt_id, a_id, b_id, labeler, order, preference, p_a, score_a,
    score_b``; ``pairs`` is what ``propose_pairs`` gives, or null for the pairs that the votes are
    about; ``candidates`` needs ``candidate_id`` and ``tokens``. Labelers not in ``weights`` have
    weight 1. ``round_index`` goes into the column ``round``. Undecided pairs are not kept, with the
    reason ``tie`` or ``no_valid_vote``, and have a as chosen and p_chosen exactly 0.5.

    Raises ``LabelerError`` for votes on pairs that were not proposed, unknown candidates, and
    preferences, orders or probabilities that do not exist or contradict each other.
    """
    if pairs is None:
        pairs = _pairs_of(votes)
    _check_pairs(pairs)
    counted = _read_votes(votes, pairs)
    verdicts = _verdicts(counted, len(pairs))
    weight = np.array([(weights or {}).get(name, 1.0) for name in counted.labelers])
    p_a = _jury(verdicts, weight, jury)  # NaN where nobody gave a valid vote

    undecided = np.isnan(p_a)
    p_a = np.where(undecided, 0.5, p_a)
    tie = ~undecided & (p_a == 0.5)
    a_wins = p_a >= 0.5  # for ties and undecided pairs: a stands first, as in the votes
    a, b = (_rows_of(candidates["candidate_id"], pairs[name]) for name in ("a_id", "b_id"))
    scores = _scores(a, b, p_a, ~undecided, len(candidates))
    chosen, rejected = np.where(a_wins, a, b), np.where(a_wins, b, a)
    score_chosen, score_rejected = scores[chosen], scores[rejected]
    tokens = candidates["tokens"].to_numpy()
    kept = ~tie & ~undecided
    mask = pa.array(a_wins)
    columns = {
        "pair_id": pairs["pair_id"],
        "prompt_id": pairs["prompt_id"],
        "round": np.full(len(pairs), round_index, np.int32),
        "chosen_id": pc.if_else(mask, pairs["a_id"], pairs["b_id"]),
        "rejected_id": pc.if_else(mask, pairs["b_id"], pairs["a_id"]),
        "p_chosen": np.where(a_wins, p_a, 1 - p_a),
        "score_chosen": score_chosen,
        "score_rejected": score_rejected,
        "margin": np.round(score_chosen - score_rejected, _DECIMALS),
        "quality_chosen": _quality(votes, counted, verdicts, a_wins),
        "agreement": _agreement(verdicts, np.sign(p_a - 0.5).astype(np.int64)),
        "position_consistent": _consistent(verdicts),
        "chosen_tokens": tokens[chosen],
        "rejected_tokens": tokens[rejected],
        "labelers": _names(counted.labelers, verdicts.valid),
        "kept": kept,
        "reason": _REASONS.take(pa.array(undecided.astype(np.int8), mask=kept)),
    }
    return pa.table([columns[name] for name in DECISION.names], schema=DECISION)


def position_bias(votes: pa.Table) -> dict[str, PositionBias]:
    """For each labeler that was shown an order: which position it prefers, and how steadily."""
    pairs = _pairs_of(votes)
    counted = _read_votes(votes, pairs)
    verdicts = _verdicts(counted, len(pairs))
    labeler = counted.cell % max(len(counted.labelers), 1)
    # The order is about the vote's own a and b, so the preference has to be as well.
    stated = np.where(counted.flipped, _swap(counted.preference), counted.preference)
    decided = (counted.order <= _BA) & (stated <= _B)
    first = decided & ((stated == _A) == (counted.order == _AB))
    found = {}
    for index, name in enumerate(counted.labelers):
        own = labeler == index
        if not (own & (counted.order <= _BA)).any():
            continue
        shown, swapped = int((decided & own).sum()), int(verdicts.swapped[:, index].sum())
        steady = int((verdicts.swapped & verdicts.unanimous)[:, index].sum())
        found[name] = PositionBias(
            shown=shown,
            first_share=int((first & own).sum()) / shown if shown else None,
            swapped=swapped,
            consistency=steady / swapped if swapped else None,
        )
    return found


def _pairs_of(votes: pa.Table) -> pa.Table:
    """The pairs that the votes are about, in the order of their first votes."""
    _, first = np.unique(_codes(votes["pair_id"]), return_index=True)
    columns = ["pair_id", "prompt_id", "a_id", "b_id"]
    return votes.select(columns).take(pa.array(np.sort(first)))


def _codes(column: pa.ChunkedArray) -> Ints:
    encoded = column.combine_chunks().dictionary_encode()
    codes: Ints = encoded.indices.to_numpy().astype(np.int64)
    return codes


def _check_pairs(pairs: pa.Table) -> None:
    if pc.any(pc.equal(pairs["a_id"], pairs["b_id"]), min_count=0).as_py():
        raise LabelerError("a pair compares a candidate with itself: chosen would be rejected")
    if pc.count_distinct(pairs["pair_id"]).as_py() != len(pairs):
        raise LabelerError("a pair is proposed twice")


def _rows_of(ids: pa.ChunkedArray, wanted: pa.ChunkedArray) -> Ints:
    """Where in ``ids`` each of ``wanted`` is."""
    return _index(wanted, ids.combine_chunks(), "a pair names a candidate that is not there")


def _index(values: pa.ChunkedArray, known: pa.Array, problem: str) -> Ints:
    found = pc.index_in(values, value_set=known)
    if found.null_count:
        missing = values.filter(pc.is_null(found))[0].as_py()
        raise LabelerError(f"{problem}: {missing!r}")
    rows: Ints = found.to_numpy().astype(np.int64)
    return rows


def _read_votes(votes: pa.Table, pairs: pa.Table) -> _Votes:
    pair = _index(
        votes["pair_id"], pairs["pair_id"].combine_chunks(), "a vote is about a pair not proposed"
    )
    names = sorted(pc.unique(votes["labeler"]).to_pylist())
    labeler = _index(votes["labeler"], pa.array(names, pa.string()), "unknown labeler")
    preference = _index(votes["preference"], _PREFERENCES, "a preference is not a, b, tie, invalid")
    order = _index(votes["order"], _ORDERS, "an order is not ab, ba, none")
    flipped = _flipped(votes, pairs.select(["a_id", "b_id"]).take(pa.array(pair)))
    p_a = votes["p_a"].to_numpy()
    _check_probabilities(p_a, preference)
    hard = np.array([1.0, 0.0, 0.5, 0.5])[preference]
    p_a = np.where(np.isnan(p_a), hard, p_a)
    return _Votes(
        labelers=tuple(names),
        pair=pair,
        cell=pair * len(names) + labeler,
        preference=np.where(flipped, _swap(preference), preference),
        p_a=np.where(flipped, 1 - p_a, p_a),
        order=order,
        flipped=flipped,
    )


def _flipped(votes: pa.Table, proposed: pa.Table) -> Bools:
    """Which votes have a and b the other way round than the pairs they are about."""
    flipped = pc.not_equal(votes["a_id"], proposed["a_id"])
    own_a, own_b = (pc.if_else(flipped, proposed[x], proposed[y]) for x, y in _BOTH_WAYS)
    same = pc.and_(pc.equal(votes["a_id"], own_a), pc.equal(votes["b_id"], own_b))
    if not pc.all(same, min_count=0).as_py():
        pair = votes["pair_id"].filter(pc.invert(same))[0].as_py()
        raise LabelerError(f"a vote on pair {pair} is about other candidates than the pair")
    result: Bools = flipped.to_numpy()
    return result


_BOTH_WAYS = (("b_id", "a_id"), ("a_id", "b_id"))


def _swap(preference: Ints) -> Ints:
    return np.array([_B, _A, _TIE, _INVALID])[preference]


def _check_probabilities(p_a: Floats, preference: Ints) -> None:
    """Refuse probabilities that do not fit their verdicts: a mix-up of labels, not an opinion."""
    known = ~np.isnan(p_a)
    outside = known & ~((p_a >= 0) & (p_a <= 1))
    against = known & (
        ((preference == _A) & (p_a < 0.5 - _ROUNDING))
        | ((preference == _B) & (p_a > 0.5 + _ROUNDING))
    )
    if outside.any():
        raise LabelerError(f"p_a {p_a[outside][0]} is not a probability")
    if against.any():
        at = np.flatnonzero(against)[0]
        said = "ab"[preference[at]]
        raise LabelerError(f"a vote prefers {said} but has p_a {p_a[at]}: are the labels swapped?")


def _verdicts(votes: _Votes, pairs: int) -> _Verdicts:
    shape = (pairs, len(votes.labelers))
    cells = shape[0] * shape[1]

    def count(rows: Bools) -> Ints:
        return np.bincount(votes.cell[rows], minlength=cells).reshape(shape)

    given = np.bincount(votes.cell, minlength=cells).reshape(shape)
    of_a, of_b, of_tie, invalid = (count(votes.preference == one) for one in range(4))
    valid = (given > 0) & (invalid == 0)
    all_a, all_b = of_a == given, of_b == given
    verdict = np.where(valid, all_a.astype(np.int64) - all_b, 0)
    total = np.bincount(votes.cell, weights=votes.p_a, minlength=cells).reshape(shape)
    p_a = np.where(verdict == 0, 0.5, total / np.maximum(given, 1))
    both = (count(votes.order == _AB) > 0) & (count(votes.order == _BA) > 0)
    return _Verdicts(
        valid=valid,
        verdict=verdict,
        p_a=p_a,
        swapped=valid & both,
        unanimous=all_a | all_b | (of_tie == given),
    )


def _jury(verdicts: _Verdicts, weight: Floats, jury: Jury) -> Floats:
    """The jury's P(a preferred to b) [P]: exactly 0.5 for a tie, NaN without a valid vote."""
    shares = verdicts.valid * weight
    total = shares.sum(axis=1)
    seated = total > 0
    total = np.where(seated, total, 1.0)
    if jury.rule == "mean":
        p_a = (shares * verdicts.p_a).sum(axis=1) / total
        tie = np.zeros(len(p_a), np.bool_)
    else:
        for_a, for_b, for_tie = (
            np.round((shares * (verdicts.verdict == one)).sum(axis=1) / total, _DECIMALS)
            for one in (1, -1, 0)
        )
        p_a = for_a + for_tie / 2
        tie = np.maximum(for_a, for_b) <= np.maximum(np.minimum(for_a, for_b), for_tie)
    p_a = np.round(p_a, _DECIMALS)
    p_a[tie | (np.abs(p_a - 0.5) <= jury.tie_band + _ROUNDING)] = 0.5
    p_a[~seated] = np.nan
    result: Floats = p_a
    return result


def _scores(a: Ints, b: Ints, p_a: Floats, decided: Bools, candidates: int) -> Floats:
    """Mean win probability of each candidate over its decided pairs [candidates]."""
    of = np.concatenate([a[decided], b[decided]])
    won = np.concatenate([p_a[decided], 1 - p_a[decided]])
    played = np.bincount(of, minlength=candidates)
    total = np.bincount(of, weights=won, minlength=candidates)
    return np.round(np.where(played > 0, total / np.maximum(played, 1), 0.5), _DECIMALS)


def _quality(votes: pa.Table, counted: _Votes, verdicts: _Verdicts, a_wins: Bools) -> pa.Array:
    """Mean absolute score of the chosen answer over the labelers that gave one [P]."""
    of_a = a_wins[counted.pair] ^ counted.flipped
    score = np.where(of_a, votes["score_a"].to_numpy(), votes["score_b"].to_numpy())
    score = score.astype(np.float64)
    rows = np.isfinite(score) & verdicts.valid.ravel()[counted.cell]
    cell, size = counted.cell[rows], verdicts.valid.size
    given = np.bincount(cell, minlength=size).reshape(verdicts.valid.shape)
    total = np.bincount(cell, weights=score[rows], minlength=size).reshape(given.shape)
    labelers = (given > 0).sum(axis=1)
    mean = (total / np.maximum(given, 1)).sum(axis=1) / np.maximum(labelers, 1)
    return pa.array(np.round(mean, _DECIMALS), mask=labelers == 0)


def _agreement(verdicts: _Verdicts, decision: Ints) -> Floats:
    """Share of the labelers with a valid verdict whose verdict is the decision [P]."""
    same = verdicts.valid & (verdicts.verdict == decision[:, None])
    agreement: Floats = same.sum(axis=1) / np.maximum(verdicts.valid.sum(axis=1), 1)
    return agreement


def _consistent(verdicts: _Verdicts) -> pa.Array:
    """Whether everyone who saw both orders said the same in both [P]; null where nobody did."""
    changed = (verdicts.swapped & ~verdicts.unanimous).any(axis=1)
    return pa.array(~changed, mask=~verdicts.swapped.any(axis=1))


def _names(labelers: tuple[str, ...], valid: Bools) -> pa.Array:
    """The labelers with a valid verdict on each pair, by name [P]."""
    ends = np.concatenate([[0], np.cumsum(valid.sum(axis=1))]).astype(np.int32)
    who = pa.array(labelers, pa.string()).take(pa.array(np.nonzero(valid)[1]))
    return pa.ListArray.from_arrays(pa.array(ends), who)
