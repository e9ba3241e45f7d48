"""Filters on decided pairs: small pure functions, registered for the config that sets them.

A filter of one's own is a class in ``prefloop.labelers.config`` (its ``type`` is the reason of the
pairs it drops) and a function here::

    @pair_filter(Margin)
    def margin(pairs: pa.Table, params: Margin) -> Drop:
        return pairs["margin"].to_numpy() < params.min

It gets the pairs that are still kept, with the columns ``FILTER_COLUMNS``, and says which to drop.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from prefloop.data.arrays import NOWHERE, as_arrow, as_numpy, as_text, as_texts, places_in
from prefloop.data.schemas import DECISION
from prefloop.labelers.base import LabelerError
from prefloop.labelers.config import (
    AcrossPolicies,
    AgreementFilter,
    FilterConfig,
    Identical,
    Length,
    LengthBalance,
    LengthRatio,
    Margin,
    MinQuality,
    NearDuplicateAnswers,
    PairFilter,
    PairStrategy,
    PChosen,
    PositionConsistency,
    ScoreFilter,
    Truncated,
    reason_of_filter,
)
from prefloop.labelers.decisions.blank_texts import are_blank
from prefloop.labelers.decisions.lengths import LENGTH_COLUMNS, compared_lengths, with_characters
from prefloop.labelers.decisions.pairs import id_keys, select_pairs
from prefloop.labelers.decisions.reasons import PAIR_STRATEGY
from prefloop.labelers.decisions.same_texts import same_texts

LENGTH_BALANCE = LengthBalance().type
EMPTY_ANSWER = "empty_answer"
"""Reason of pairs with an answer that has no text, whatever the filters."""

Drop = NDArray[np.bool_]
"""Which of the pairs to drop [N]."""

_DECIDED_COLUMNS = [
    "p_chosen", "score_chosen", "score_rejected", "margin", "quality_chosen", "agreement",
    "position_consistent", *LENGTH_COLUMNS,
]  # fmt: skip
FILTER_COLUMNS = [
    *_DECIDED_COLUMNS,
    "chosen_text", "rejected_text", "chosen_finish_reason", "rejected_finish_reason",
]  # fmt: skip
"""What filters see. Texts come dictionary-encoded: a text that is in several pairs is there once,
see :func:`text_codes`."""

_ROUNDING = 1e-9
_FILTERS: dict[type, Callable[[pa.Table, Any], Drop]] = {}
_F = TypeVar("_F", bound=Callable[[pa.Table, Any], Drop])


def pair_filter(config: type) -> Callable[[_F], _F]:
    """Register the decorated function as the filter that ``config`` sets."""

    def register(function: _F) -> _F:
        if config in _FILTERS:
            raise ValueError(f"{config.__name__} has a filter already")
        _FILTERS[config] = function
        return function

    return register


def apply_filters(
    decisions: pa.Table,
    candidates: pa.Table,
    config: FilterConfig,
    *,
    seed: int,
    rewards: Mapping[str, float] | None = None,
    scores: Mapping[str, Mapping[str, float]] | None = None,
) -> pa.Table:
    """Drop kept decisions by the filters, in their order, and then by the pair strategy.

    ``candidates`` needs ``candidate_id, text, finish_reason, origin, policy_revision`` of both
    answers of every kept pair, and ``policy`` for the strategy ``across_policies``. ``rewards``:
    the absolute scores of candidates by id, as far as labelers gave them. ``scores``: the same of
    each labeler in ``config.scored_by``, by its name.
    Returns the same rows in the same order (schema DECISION), those dropped with their reason.
    Pairs with an answer that has no text, or whose answers are identical, never stay, listed or
    not, and the former have the reason ``empty_answer`` whether anybody voted on them or not. The
    length balance is not applied: it needs the whole round, see :func:`balance_cutoff`.

    Raises ``LabelerError`` where a kept pair's candidate is not in ``candidates``.
    """
    filters = [one for one in config.filters if not isinstance(one, LengthBalance)]
    if not any(isinstance(one, Identical) for one in filters):
        filters.insert(0, Identical())
    reasons = [EMPTY_ANSWER, *map(reason_of_filter, filters), PAIR_STRATEGY]
    chosen, rejected = places_in(
        candidates["candidate_id"], decisions["chosen_id"], decisions["rejected_id"]
    )
    decisions = with_characters(decisions, candidates, chosen, rejected)
    empty = _without_text(candidates, chosen, rejected)
    dropped_by = np.where(empty, 0, -1).astype(np.int8)
    rows = np.flatnonzero(as_numpy(decisions["kept"]) & ~empty)
    pairs = _with_answers(decisions, candidates, rows, chosen[rows], rejected[rows])
    pairs = _with_scores(pairs, decisions, rows, config.scored_by, scores or {})
    for index, one in enumerate(filters, start=1):
        drop = _run(one, pairs)
        if drop.any():
            dropped_by[rows[drop]] = index
            rows, pairs = rows[~drop], pairs.filter(as_arrow(~drop))
    among = _with_kept(decisions, rows)
    selected = _select(among, candidates, config.strategy, seed, rewards or {})
    dropped_by[rows[~selected[rows]]] = len(reasons) - 1
    _require_unequal(pairs.filter(as_arrow(selected[rows])))
    return _drop(decisions, dropped_by, reasons)


def _require_unequal(pairs: pa.Table) -> None:
    """Fail where a pair that stays has the same text twice, which no filter lets be."""
    chosen, rejected = (
        pairs[f"{side}_text"].combine_chunks().dictionary_decode()
        for side in ("chosen", "rejected")
    )
    assert not pc.any(pc.equal(chosen, rejected), min_count=0).as_py(), (
        "a kept pair has chosen == rejected"
    )


def _select(
    decisions: pa.Table,
    candidates: pa.Table,
    strategy: PairStrategy,
    seed: int,
    rewards: Mapping[str, float],
) -> NDArray[np.bool_]:
    """Which of the kept decisions the strategy keeps."""
    if not isinstance(strategy, AcrossPolicies):
        return select_pairs(decisions, strategy, seed=seed, rewards=rewards)
    writers = []
    for side in ("chosen_id", "rejected_id"):
        ids = candidates["candidate_id"].combine_chunks()
        writers.append(candidates["policy"].take(pc.index_in(decisions[side], value_set=ids)))
    across = pc.and_(decisions["kept"], pc.not_equal(*writers))
    among = _with_kept(decisions, np.flatnonzero(as_numpy(across) == 1))
    return select_pairs(among, strategy.chooser, seed=seed, rewards=rewards)


def _with_kept(decisions: pa.Table, rows: NDArray[np.int64]) -> pa.Table:
    """``decisions`` of which ``rows`` are kept and no others."""
    kept = np.zeros(len(decisions), np.bool_)
    kept[rows] = True
    return decisions.set_column(decisions.column_names.index("kept"), "kept", as_arrow(kept))


def has_empty_answer(
    first_ids: pa.ChunkedArray, second_ids: pa.ChunkedArray, candidates: pa.Table
) -> Drop:
    """Whether one of the two answers of each pair is without text, or white space only [N].

    ``candidates`` needs ``candidate_id`` and ``text``.
    """
    rows = places_in(candidates["candidate_id"], first_ids, second_ids)
    return _without_text(candidates, *rows)


def _without_text(
    candidates: pa.Table, first: NDArray[np.int64], second: NDArray[np.int64]
) -> Drop:
    """The same of pairs of rows of ``candidates``; ``NOWHERE`` is no answer without text."""
    blank = np.append(are_blank(candidates["text"]), False)
    found: Drop = blank[first] | blank[second]
    return found


def _run(one: PairFilter, pairs: pa.Table) -> Drop:
    drop = _FILTERS[type(one)](pairs, one)
    assert drop.shape == (len(pairs),)
    assert drop.dtype == np.bool_
    return drop


def _drop(decisions: pa.Table, dropped_by: NDArray[Any], reasons: list[str]) -> pa.Table:
    """Mark rows as dropped; ``dropped_by`` is the number of the reason, -1 for none."""
    new = dropped_by >= 0
    named = as_texts(reasons).take(as_arrow(dropped_by, mask=~new))
    columns = {
        "kept": as_arrow(as_numpy(decisions["kept"]) & ~new),
        "reason": pc.if_else(as_arrow(new), named, decisions["reason"]),
    }
    return pa.table([columns.get(name, decisions[name]) for name in DECISION.names], DECISION)


def _with_answers(
    decisions: pa.Table,
    candidates: pa.Table,
    rows: NDArray[np.int64],
    chosen: NDArray[np.int64],
    rejected: NDArray[np.int64],
) -> pa.Table:
    """The decisions at ``rows`` with the texts of their answers, which are the rows ``chosen`` and
    ``rejected`` of ``candidates``: columns FILTER_COLUMNS."""
    texts = candidates["text"].combine_chunks()
    kept = decisions.select(_DECIDED_COLUMNS).take(as_arrow(rows))
    reasons = []
    columns = kept.columns
    for side, answers in (("chosen", chosen), ("rejected", rejected)):
        if (answers == NOWHERE).any():
            missing = decisions[f"{side}_id"][rows[answers == NOWHERE][0]].as_py()
            raise LabelerError(f"decided candidate {missing} is not among the candidates")
        indices = as_arrow(answers.astype(np.int32))
        columns.append(pa.DictionaryArray.from_arrays(indices, texts))
        reasons.append(candidates["finish_reason"].take(indices))
    return pa.table([*columns, *reasons], FILTER_COLUMNS)


def _with_scores(
    pairs: pa.Table,
    decisions: pa.Table,
    rows: NDArray[np.int64],
    labelers: Sequence[str],
    scores: Mapping[str, Mapping[str, float]],
) -> pa.Table:
    """The pairs, which are the decisions at ``rows``, with the scores of both answers by each of
    ``labelers``, null where it gave none."""
    for labeler in labelers:
        known = scores.get(labeler, {})
        for side in ("chosen", "rejected"):
            ids = decisions[f"{side}_id"].take(as_arrow(rows)).to_pylist()
            of_side = pa.array([known.get(one) for one in ids], pa.float64())
            pairs = pairs.append_column(_score_column(side, labeler), of_side)
    return pairs


def _score_column(side: str, labeler: str) -> str:
    return f"{side}_score:{labeler}"


def text_codes(pairs: pa.Table) -> tuple[pa.Array, NDArray[np.int64], NDArray[np.int64]]:
    """The distinct texts of the pairs, and for each pair the index [N] of chosen and rejected."""
    sides = [pairs[name].combine_chunks() for name in ("chosen_text", "rejected_text")]
    if not all(pa.types.is_dictionary(side.type) for side in sides):
        encoded = pa.chunked_array(sides).dictionary_encode().unify_dictionaries()
        sides = encoded.chunks
    chosen, rejected = (as_numpy(side.indices).astype(np.int64) for side in sides)
    return sides[0].dictionary, chosen, rejected


# The filters ------------------------------------------------------------------------------------


@pair_filter(Identical)
def identical(pairs: pa.Table, params: Identical) -> Drop:  # noqa: ARG001
    """Drop where the answers are equal but for case (Unicode case folding) and white space."""
    return same_texts(*text_codes(pairs))


@pair_filter(Truncated)
def truncated(pairs: pa.Table, params: Truncated) -> Drop:
    """Drop where an answer (or the chosen one) ended at the token limit."""
    drop: Drop = as_numpy(pc.equal(pairs["chosen_finish_reason"], as_text("length")))
    if params.which == "either":
        drop = drop | as_numpy(pc.equal(pairs["rejected_finish_reason"], as_text("length")))
    return drop


@pair_filter(LengthRatio)
def length_ratio(pairs: pa.Table, params: LengthRatio) -> Drop:
    """Drop where the longer answer has too many times the tokens (of answers of different models:
    characters) of the shorter."""
    chosen, rejected = compared_lengths(pairs)
    shorter = np.maximum(np.minimum(chosen, rejected), 1)
    drop: Drop = np.maximum(chosen, rejected) / shorter > params.max + _ROUNDING
    return drop


@pair_filter(Length)
def length(pairs: pa.Table, params: Length) -> Drop:
    """Drop where an answer has too few or too many tokens."""
    chosen, rejected = as_numpy(pairs["chosen_tokens"]), as_numpy(pairs["rejected_tokens"])
    drop: Drop = np.minimum(chosen, rejected) < params.min_tokens
    if params.max_tokens is not None:
        drop = drop | (np.maximum(chosen, rejected) > params.max_tokens)
    return drop


@pair_filter(NearDuplicateAnswers)
def near_duplicate_answers(pairs: pa.Table, params: NearDuplicateAnswers) -> Drop:
    """Drop where the answers are too similar, by the normalised Indel similarity in characters:
    2 LCS(x, y) / (len x + len y), LCS being the length of the longest common subsequence."""
    from rapidfuzz import fuzz, process

    texts, chosen, rejected = text_codes(pairs)
    similarity = process.cpdist(
        texts.take(as_arrow(chosen)).to_pylist(),
        texts.take(as_arrow(rejected)).to_pylist(),
        scorer=fuzz.ratio,
        # Below the cut-off, which lets rapidfuzz stop early, the similarity is given as 0.
        score_cutoff=100 * params.max_similarity,
        dtype=np.float64,
        workers=1,
    )
    drop: Drop = similarity > 100 * params.max_similarity + _ROUNDING
    return drop


@pair_filter(AgreementFilter)
def agreement(pairs: pa.Table, params: AgreementFilter) -> Drop:
    """Drop where too few of the labelers share the decision."""
    drop: Drop = as_numpy(pairs["agreement"]) < params.min - _ROUNDING
    return drop


@pair_filter(PositionConsistency)
def position_consistency(pairs: pa.Table, params: PositionConsistency) -> Drop:  # noqa: ARG001
    """Drop where a labeler that saw both orders changed its verdict; keep where nobody saw both."""
    drop: Drop = as_numpy(pairs["position_consistent"]) == 0
    return drop


@pair_filter(Margin)
def margin(pairs: pa.Table, params: Margin) -> Drop:
    """Drop where the chosen answer's mean win probability is not far enough above the
    rejected one's."""
    drop: Drop = as_numpy(pairs["margin"]) < params.min - _ROUNDING
    return drop


@pair_filter(PChosen)
def p_chosen(pairs: pa.Table, params: PChosen) -> Drop:
    """Drop where the jury is not sure enough of its own decision."""
    drop: Drop = as_numpy(pairs["p_chosen"]) < params.min - _ROUNDING
    return drop


@pair_filter(MinQuality)
def min_quality(pairs: pa.Table, params: MinQuality) -> Drop:
    """Drop where the chosen answer's mean absolute score is too low, or where it has none and so is
    not known to be good."""
    drop: Drop = ~(as_numpy(pairs["quality_chosen"]) >= params.min - _ROUNDING)
    return drop


@pair_filter(ScoreFilter)
def score(pairs: pa.Table, params: ScoreFilter) -> Drop:
    """Drop where the score of an answer by the labeler is out of bounds, or, unless these are to be
    kept, where it has none and so is not known to be within."""
    sides = ("chosen", "rejected") if params.which == "either" else (params.which,)
    drop: Drop = np.zeros(len(pairs), np.bool_)
    for side in sides:
        given = pairs[_score_column(side, params.labeler)]
        scores = as_numpy(given)
        within = np.isfinite(scores)
        if params.min is not None:
            within &= scores >= params.min - _ROUNDING
        if params.max is not None:
            within &= scores <= params.max + _ROUNDING
        if params.unscored == "keep":
            within |= ~np.isfinite(scores)
        drop = drop | ~within
    return drop


# Length balance ---------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class BalanceRows:
    """What the balance has to know of a shard's kept pairs of unequal lengths: 17 bytes each."""

    margins: NDArray[np.float64]
    pairs: NDArray[np.uint64]
    """The first 64 bits of the pair ids."""
    longer: NDArray[np.bool_]
    """The chosen answer is the longer one."""

    @classmethod
    def of(cls, decisions: pa.Table) -> BalanceRows:
        """The kept rows of a table of decisions whose two answers differ in length."""
        unequal = as_arrow(np.not_equal(*compared_lengths(decisions)))
        columns = ["pair_id", "margin", *LENGTH_COLUMNS]
        kept = decisions.select(columns).filter(pc.and_(decisions["kept"], unequal))
        return cls(as_numpy(kept["margin"]), id_keys(kept["pair_id"]), _chosen_is_longer(kept))


@dataclass(frozen=True, slots=True)
class Cutoff:
    """The last pair that the balance drops: of the kept pairs whose chosen answer is longer, all up
    to it go, in the order of (margin, pair). ``pair`` is the first 64 bits of its id."""

    margin: float
    pair: int


def balance_cutoff(shards: Sequence[BalanceRows], rule: LengthBalance) -> Cutoff | None:
    """Where to cut so that the share of chosen-is-longer pairs does not exceed its ceiling.

    ``shards`` are those of the whole round. The fewest possible pairs go, those with the smallest
    margins. Of N pairs with L longer ones, with ceiling c, (L - d) / (N - d) <= c first holds for
    d = ceil((L - c N) / (1 - c)). Pairs of equal lengths say nothing about a taste for length and
    do not count. Returns null where nothing has to be dropped.
    """
    ceiling = Fraction(str(rule.max_share_longer))  # 0.55 * 20 is 11, and not 11.000000000000002
    total = sum(len(shard.longer) for shard in shards)
    longer = sum(int(shard.longer.sum()) for shard in shards)
    excess = longer - ceiling * total
    if excess <= 0:
        return None
    drop = math.ceil(excess / (1 - ceiling))
    margins = np.concatenate([shard.margins[shard.longer] for shard in shards])
    pairs = np.concatenate([shard.pairs[shard.longer] for shard in shards])
    last = np.lexsort((pairs, margins))[drop - 1]
    return Cutoff(float(margins[last]), int(pairs[last]))


def apply_balance(decisions: pa.Table, cutoff: Cutoff | None) -> pa.Table:
    """Drop the kept decisions up to the cut-off, with the reason ``length_balance``."""
    if cutoff is None:
        return decisions
    margin = as_numpy(decisions["margin"])
    drop = as_numpy(decisions["kept"]) & _chosen_is_longer(decisions) & (margin <= cutoff.margin)
    equal = np.flatnonzero(drop & (margin == cutoff.margin))
    keys = id_keys(decisions["pair_id"].take(as_arrow(equal)))
    drop[equal] = keys <= np.uint64(cutoff.pair)
    return _drop(decisions, np.where(drop, 0, -1), [LENGTH_BALANCE])


def _chosen_is_longer(decisions: pa.Table) -> NDArray[np.bool_]:
    chosen, rejected = compared_lengths(decisions)
    return chosen > rejected
