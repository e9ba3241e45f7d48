"""The votes of each labeler on each pair, merged to one verdict: what juries and statistics read.

The votes of one labeler on one pair become one verdict. First, what a judge said when it was asked
several times in one order is what more than half of these votes say, or else a tie. Then votes that
all say the same are that verdict; votes that contradict each other (a judge that changed its mind
when the answers were swapped) are a tie; an invalid one makes the labeler abstain. Its probability
is the mean of its votes' (1, 0.5, 0 where a vote has none), and 0.5 where the verdict is a tie.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from prefloop.data.arrays import (
    NOWHERE,
    Bools,
    Floats,
    Ints,
    as_arrow,
    as_numpy,
    as_texts,
    places_in,
)
from prefloop.labelers.base import LabelerError
from prefloop.labelers.jury.calibrator import Calibrator

VERDICT_COLUMNS = [
    "pair_id", "prompt_id", "a_id", "b_id", "labeler", "order", "preference", "p_a",
]  # fmt: skip
"""The columns of a votes table that verdicts are made from."""
VOTE_COLUMNS = [*VERDICT_COLUMNS, "score_a", "score_b"]
"""The columns that decisions are made from."""

ROUNDING = 1e-9
"""Differences of probabilities below this are the computer's, not the labeler's."""

_PREFERENCES = ("a", "b", "tie", "invalid")
_A, _B, _TIE, _INVALID = range(4)
_ORDERS = ("ab", "ba", "none")
_AB, _BA, _NONE = range(3)


@dataclass(frozen=True)
class PositionBias:
    """How a labeler's verdicts depend on the order in which answers were shown."""

    shown: int = 0
    """Valid votes, without ties, for which an order was shown."""
    first: int = 0
    """Of those, the ones that prefer the answer shown first."""
    swapped: int = 0
    """Pairs with a valid vote in both orders."""
    steady: int = 0
    """Of those, the ones with the same verdict in both."""
    prompts: int = 0
    """Prompts that the ``shown`` votes are about."""
    shown_squares: int = 0
    """Sum over these prompts of the square of their ``shown`` votes."""
    first_squares: int = 0
    """The same of ``first``."""
    products: int = 0
    """Sum over these prompts of ``first`` times ``shown``."""

    @property
    def first_share(self) -> float | None:
        """Share of votes for the answer shown first; 0.5 is unbiased."""
        return self.first / self.shown if self.shown else None

    @property
    def consistency(self) -> float | None:
        """Share of pairs judged alike in both orders."""
        return self.steady / self.swapped if self.swapped else None

    def __add__(self, other: PositionBias) -> PositionBias:
        return PositionBias(
            self.shown + other.shown,
            self.first + other.first,
            self.swapped + other.swapped,
            self.steady + other.steady,
            self.prompts + other.prompts,
            self.shown_squares + other.shown_squares,
            self.first_squares + other.first_squares,
            self.products + other.products,
        )


@dataclass(frozen=True)
class Votes:
    """V votes on P pairs by L labelers, as numbers; ``preference``, ``p_a`` and ``order`` are about
    the pair's a and b, also where the vote itself has the two the other way round (``flipped``)."""

    labelers: tuple[str, ...]
    pair: Ints  # [V]
    cell: Ints  # [V], number of the pair and labeler: pair * L + labeler
    preference: Ints  # [V]
    p_a: Floats  # [V], 0.5 for ties and invalid votes without one
    soft: Bools  # [V], whether the labeler gave a probability
    order: Ints  # [V]
    flipped: Bools  # [V]

    @property
    def labeler(self) -> Ints:
        """Place in ``labelers`` of each vote's [V]."""
        return self.cell % max(len(self.labelers), 1)

    def said(self) -> dict[str, dict[str, int]]:
        """How often each labeler said what: a, b, tie, invalid."""
        kinds = len(_PREFERENCES)
        cells = self.labeler * kinds + self.preference
        counts = np.bincount(cells, minlength=kinds * len(self.labelers)).reshape(-1, kinds)
        return {
            name: dict(zip(_PREFERENCES, row, strict=True))
            for name, row in zip(self.labelers, counts.tolist(), strict=True)
        }


@dataclass(frozen=True)
class Verdicts:
    """What each labeler says about each pair; all arrays are [P, L]."""

    valid: Bools
    verdict: Ints  # 1: a, 0: tie, -1: b
    p_a: Floats
    soft: Bools  # every vote came with a probability
    swapped: Bools  # valid votes in both orders
    unanimous: Bools  # all its votes say the same


def rows_in(values: pa.ChunkedArray, known: pa.Array, problem: str) -> Ints:
    """Where in ``known`` each of ``values`` stands; ``LabelerError`` for one that does not."""
    [rows] = places_in(pa.chunked_array([known]), values)
    nowhere = np.flatnonzero(rows == NOWHERE)
    if len(nowhere):
        raise LabelerError(f"{problem}: {values[nowhere[0]].as_py()!r}")
    return rows


def pairs_of(votes: pa.Table) -> pa.Table:
    """The pairs that the votes are about, in the order of their first votes."""
    return _at_first_votes(votes, _codes(votes["pair_id"]))


def _at_first_votes(votes: pa.Table, pair: Ints) -> pa.Table:
    """The pairs of the votes, which are about those of number ``pair`` [V], as ``_codes`` counts
    them: a larger number than before is a pair that was not seen before."""
    first = np.flatnonzero(np.diff(np.maximum.accumulate(pair), prepend=-1))
    return votes.select(["pair_id", "prompt_id", "a_id", "b_id"]).take(as_arrow(first))


def prompts_of(pairs: pa.Table) -> Ints:
    """The number of each pair's prompt, from 0 [P]."""
    return _codes(pairs["prompt_id"])


def _codes(column: pa.ChunkedArray) -> Ints:
    """The number of each value, in the order of their first occurrences, from 0."""
    encoded = column.combine_chunks().dictionary_encode()
    codes: Ints = as_numpy(encoded.indices).astype(np.int64)
    return codes


def read_votes(votes: pa.Table, pairs: pa.Table) -> Votes:
    """The votes (VERDICT_COLUMNS) as numbers, by the pairs (``pair_id, prompt_id, a_id, b_id``).

    Raises ``LabelerError`` for votes on other pairs, and for preferences, orders or probabilities
    that do not exist or contradict each other.
    """
    pair = _pairs_of_votes(votes["pair_id"], pairs["pair_id"])
    return _as_numbers(votes, pairs, pair)


def read_votes_and_pairs(votes: pa.Table) -> tuple[Votes, pa.Table]:
    """The votes (VERDICT_COLUMNS) as numbers, and the pairs that they are about: ``read_votes`` by
    ``pairs_of``, for half of the time. Raises ``LabelerError`` as that does."""
    pair = _codes(votes["pair_id"])
    pairs = _at_first_votes(votes, pair)
    return _as_numbers(votes, pairs, pair), pairs


def _as_numbers(votes: pa.Table, pairs: pa.Table, pair: Ints) -> Votes:
    """The votes as numbers; each is about the pair in row ``pair`` [V] of ``pairs``."""
    names = sorted(pc.unique(votes["labeler"]).to_pylist())
    labeler = rows_in(votes["labeler"], as_texts(names), "unknown labeler")
    preference = rows_in(
        votes["preference"], as_texts(_PREFERENCES), "a preference is not a, b, tie, invalid"
    )
    order = rows_in(votes["order"], as_texts(_ORDERS), "an order is not ab, ba, none")
    flipped = _flipped(votes, pairs.select(["a_id", "b_id"]).take(as_arrow(pair)))
    p_a = as_numpy(votes["p_a"])
    _check_probabilities(p_a, preference)
    soft = ~np.isnan(p_a)
    hard = np.array([1.0, 0.0, 0.5, 0.5])[preference]
    p_a = np.where(soft, p_a, hard)
    if flipped.any():
        preference = np.where(flipped, _swap(preference), preference)
        p_a = np.where(flipped, 1 - p_a, p_a)
        order = np.where(flipped, np.array([_BA, _AB, _NONE])[order], order)
    return Votes(
        labelers=tuple(names),
        pair=pair,
        cell=pair * len(names) + labeler,
        preference=preference,
        p_a=p_a,
        soft=soft,
        order=order,
        flipped=flipped,
    )


def _pairs_of_votes(voted: pa.ChunkedArray, proposed: pa.ChunkedArray) -> Ints:
    """The number of the pair that each vote is about [V]."""
    if voted.equals(proposed):  # one vote on each, in their order
        return np.arange(len(voted))
    return rows_in(voted, proposed.combine_chunks(), "a vote is about a pair not proposed")


def _one_an_order(votes: Votes) -> Votes:
    """One vote for all of a labeler on a pair in one order of answers: what more than half of them
    say, or a tie. Its probability is the mean of the valid ones, and a majority that it contradicts
    a tie."""
    showing = votes.cell * 2 + votes.order
    apart = votes.order == _NONE
    if np.bincount(showing[~apart]).max(initial=0) <= 1:
        return votes
    showing[apart] = -1 - np.arange(int(apart.sum()))  # who sees no order was not asked again
    _, first, place, counts = np.unique(
        showing,
        return_index=True, return_inverse=True, return_counts=True,
    )  # fmt: skip
    said = np.bincount(place * 4 + votes.preference, minlength=4 * len(first)).reshape(-1, 4)
    valid = votes.preference != _INVALID
    answered = np.maximum(counts - said[:, _INVALID], 1)
    p_a = np.bincount(place, weights=votes.p_a * valid, minlength=len(first)) / answered
    preference = np.where(2 * said.max(1) > counts, said.argmax(1), _TIE)
    against = ((preference == _A) & (p_a < 0.5)) | ((preference == _B) & (p_a > 0.5))
    preference = np.where(against, _TIE, preference)
    soft = np.bincount(place, weights=~valid | votes.soft, minlength=len(first)) == counts
    kept = np.argsort(first)  # in the order of their first votes
    rows = first[kept]
    return Votes(
        labelers=votes.labelers,
        pair=votes.pair[rows],
        cell=votes.cell[rows],
        preference=preference[kept],
        p_a=np.where(preference <= _B, p_a, 0.5)[kept],
        soft=soft[kept],
        order=votes.order[rows],
        flipped=votes.flipped[rows],
    )


def merge_votes(votes: Votes, pairs: int) -> Verdicts:
    """One verdict for each of ``pairs`` pairs and each labeler."""
    votes = _one_an_order(votes)
    shape = (pairs, len(votes.labelers))
    cells = shape[0] * shape[1]

    def counts(values: Ints, most: int) -> list[Ints]:
        """How many votes of each cell have each value below ``most``."""
        found = np.bincount(votes.cell * most + values, minlength=cells * most)
        return [found[value::most].reshape(shape) for value in range(most)]

    of_a, of_b, of_tie, invalid = counts(votes.preference, len(_PREFERENCES))
    given = of_a + of_b + of_tie + invalid
    valid = (given > 0) & (invalid == 0)
    all_a, all_b = of_a == given, of_b == given
    verdict = np.where(valid, all_a.astype(np.int64) - all_b, 0)
    total = np.bincount(votes.cell, weights=votes.p_a, minlength=cells).reshape(shape)
    p_a = np.where(verdict == 0, 0.5, total / np.maximum(given, 1))
    shown_ab, shown_ba, _ = counts(votes.order, len(_ORDERS))
    _, soft = counts(votes.soft.astype(np.int64), 2)
    return Verdicts(
        valid=valid,
        verdict=verdict,
        p_a=p_a,
        soft=valid & (soft == given),
        swapped=valid & (shown_ab > 0) & (shown_ba > 0),
        unanimous=all_a | all_b | (of_tie == given),
    )


def of_labelers(verdicts: Verdicts, labelers: Bools) -> Verdicts:
    """The verdicts of some labelers (bool [L])."""
    columns = {name: value[:, labelers] for name, value in vars(verdicts).items()}
    return Verdicts(**columns)


def calibrated(
    verdicts: Verdicts, labelers: tuple[str, ...], calibrators: Mapping[str, Calibrator]
) -> Verdicts:
    """The verdicts with their probabilities mapped by the calibration of their labelers.

    Only probabilities that a labeler gave are touched: not the 0 and 1 of hard votes, and not the
    0.5 of a tie. A calibrator turns no verdict round.
    """
    p_a = verdicts.p_a.copy()
    for index, name in enumerate(labelers):
        if name in calibrators:
            rows = verdicts.soft[:, index] & (verdicts.verdict[:, index] != 0)
            p_a[rows, index] = calibrators[name].apply(p_a[rows, index])
    return replace(verdicts, p_a=p_a)


def position_bias(votes: Votes, verdicts: Verdicts, prompts: Ints) -> dict[str, PositionBias]:
    """For each labeler that was shown an order: which position it prefers, and how steadily.

    ``prompts`` [P] numbers the prompt of each pair, from 0."""
    votes = _one_an_order(votes)
    labeler = votes.labeler
    ordered = votes.order <= _BA
    decided = ordered & (votes.preference <= _B)
    first = decided & ((votes.preference == _A) == (votes.order == _AB))
    steady = verdicts.swapped & verdicts.unanimous
    found = {}
    for index, name in enumerate(votes.labelers):
        own = labeler == index
        if not (ordered & own).any():
            continue
        of_prompt, first_of_prompt = (
            np.bincount(prompts[votes.pair[rows & own]], minlength=len(steady))
            for rows in (decided, first)
        )
        found[name] = PositionBias(
            shown=int(of_prompt.sum()),
            first=int(first_of_prompt.sum()),
            swapped=int(verdicts.swapped[:, index].sum()),
            steady=int(steady[:, index].sum()),
            prompts=int((of_prompt > 0).sum()),
            shown_squares=int((of_prompt**2).sum()),
            first_squares=int((first_of_prompt**2).sum()),
            products=int((of_prompt * first_of_prompt).sum()),
        )
    return found


def _flipped(votes: pa.Table, proposed: pa.Table) -> Bools:
    """Which votes have a and b the other way round than the pairs they are about."""
    same_a, same_b = (pc.equal(votes[side], proposed[side]) for side in ("a_id", "b_id"))
    flipped: Bools = as_numpy(pc.invert(same_a))
    fits: Bools = as_numpy(same_b)
    if flipped.any():
        other = as_arrow(flipped)
        given, turned = votes.filter(other), proposed.filter(other)
        crossed = (pc.equal(given["a_id"], turned["b_id"]), pc.equal(given["b_id"], turned["a_id"]))
        fits = fits.copy()
        fits[flipped] = as_numpy(pc.and_(*crossed))
    if not fits.all():
        pair = votes["pair_id"][int(np.argmin(fits))].as_py()
        raise LabelerError(f"a vote on pair {pair} is about other candidates than the pair")
    return flipped


def _swap(preference: Ints) -> Ints:
    return np.array([_B, _A, _TIE, _INVALID])[preference]


def _check_probabilities(p_a: Floats, preference: Ints) -> None:
    """Refuse probabilities that do not fit their verdicts: a mix-up of labels, not an opinion."""
    known = ~np.isnan(p_a)
    outside = known & ~((p_a >= 0) & (p_a <= 1))
    against = known & (
        ((preference == _A) & (p_a < 0.5 - ROUNDING))
        | ((preference == _B) & (p_a > 0.5 + ROUNDING))
    )
    if outside.any():
        raise LabelerError(f"p_a {p_a[outside][0]} is not a probability")
    if against.any():
        at = np.flatnonzero(against)[0]
        said = "ab"[preference[at]]
        raise LabelerError(f"a vote prefers {said} but has p_a {p_a[at]}: are the labels swapped?")
