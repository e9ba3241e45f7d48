"""Which candidates of a prompt are compared, and which of the decided pairs are used.

Everything is vectorised over rows, and nothing depends on the order of the rows: what is drawn is
drawn by (seed, pair id), and equal scores are told apart by pair id.
"""

from __future__ import annotations

import hashlib
from binascii import unhexlify
from collections.abc import Mapping

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from prefloop.data.arrays import as_arrow, as_numpy, as_text
from prefloop.data.hashing import derive_seed
from prefloop.labelers.base import LabelerError
from prefloop.labelers.config import (
    AllPairs,
    BestVsLow,
    BestVsRandom,
    BestVsWorst,
    Chooser,
    CorrectVsIncorrect,
)
from prefloop.labelers.decisions.lengths import compared_lengths
from prefloop.labelers.decisions.low_answers import distance_to_low

PAIR = pa.schema([(name, pa.string()) for name in ("pair_id", "prompt_id", "a_id", "b_id")])

Keys = NDArray[np.uint64]
Rewards = Mapping[str, float]
"""Absolute scores of candidates by id."""
_ID_LENGTH = 32
_NO_ID = "an id is not a content hash of 32 hexadecimal characters"
_CASE = np.uint64(0x2020202020202020)
_HASH_ROWS = 65_536
_ROUNDING = 1e-9


Sets = Mapping[str, frozenset[int]]
"""Sets of answers that each candidate belongs to, by its id."""


def propose_pairs(
    candidates: pa.Table,
    *,
    per_prompt: int | None,
    seed: int,
    sets: Sets | None = None,
    across_policies: bool = False,
) -> pa.Table:
    """Pairs of candidates of the same prompt: schema PAIR, sorted by prompt id.

    ``candidates`` needs the columns ``candidate_id`` and ``prompt_id``, in any order of rows. All
    n (n - 1) / 2 pairs of a prompt's n candidates, or ``per_prompt`` of them drawn by seed. Two
    candidates that are both in ``sets`` are a pair only where they have one in common, and with
    ``across_policies`` two are one only where their column ``policy`` differs. ``a`` is the
    candidate with the smaller id; ids are hashes, so that says nothing about who it is.

    Raises ``LabelerError`` where an id occurs twice in a prompt or is no content hash.
    """
    candidate_ids = _array(candidates["candidate_id"])
    prompts = _array(candidates["prompt_id"]).dictionary_encode()
    prompt_ids, prompt_codes = prompts.dictionary, as_numpy(prompts.indices)
    by_id = np.argsort(id_keys(prompt_ids))
    rank = np.empty(len(by_id), np.int64)
    rank[by_id] = np.arange(len(by_id))

    group = rank[prompt_codes]
    keys = id_keys(candidate_ids)
    order = _sorted_by(group, keys)
    _require_distinct(keys[order], group[order], candidate_ids, order)
    counts = np.bincount(group, minlength=len(by_id))
    first, second, of_group = _combinations(counts)
    a, b = candidate_ids.take(as_arrow(order[first])), candidate_ids.take(as_arrow(order[second]))
    prompt = prompt_ids.take(as_arrow(by_id[of_group]))
    table = pa.table([_pair_ids(prompt, a, b), prompt, a, b], schema=PAIR)
    may_be = np.ones(len(table), np.bool_)
    if across_policies:
        policy = as_numpy(_array(candidates["policy"]).dictionary_encode().indices)[order]
        may_be &= policy[first] != policy[second]
    if sets:
        may_be &= _together(table, sets)
    if not may_be.all():
        table, of_group = table.filter(as_arrow(may_be)), of_group[may_be]
    if per_prompt is None or len(table) == 0:
        return table
    return table.filter(as_arrow(_lowest(_draw_keys(table["pair_id"], seed), of_group, per_prompt)))


def _together(pairs: pa.Table, sets: Sets) -> NDArray[np.bool_]:
    """Which pairs may be: not those of answers that were given apart from each other."""
    both = zip(pairs["a_id"].to_pylist(), pairs["b_id"].to_pylist(), strict=True)
    found = ((sets.get(a), sets.get(b)) for a, b in both)
    return np.array([not a or not b or not a.isdisjoint(b) for a, b in found], np.bool_)


def select_pairs(
    decisions: pa.Table,
    strategy: Chooser,
    *,
    seed: int,
    rewards: Rewards | None = None,
) -> NDArray[np.bool_]:
    """Which of the kept decisions the strategy keeps: a mask [N], false where not kept before.

    ``best_vs_worst``: of a prompt's pairs the one with the largest margin, which is the best answer
    against the worst where all its pairs were labelled. ``best_vs_random``: of the pairs whose
    chosen answer has the highest score, one drawn by seed. ``best_vs_low``: of these, the one whose
    rejected answer is nearest to the mean minus so many standard deviations of the prompt's
    answers, by ``rewards`` (absolute scores by candidate) where all of these have one (see
    ``prefloop.labelers.decisions.low_answers``). ``correct_vs_incorrect``: of the pairs of a right
    and a wrong answer by ``rewards``, those whose lengths differ least. ``ranked_neighbours``: the
    chosen answer's score is the next above the rejected one's among the scores of the prompt's
    pairs. ``all``: the margin is at least ``min_margin``.
    """
    selected = np.zeros(len(decisions), np.bool_)
    rows = np.flatnonzero(as_numpy(decisions["kept"]))
    if len(rows) == 0:
        return selected
    columns = ["pair_id", "prompt_id", "score_chosen", "score_rejected", "margin"]
    kept = decisions.select(columns).take(as_arrow(rows))
    margin = as_numpy(kept["margin"])
    if isinstance(strategy, AllPairs):
        selected[rows] = margin >= strategy.min_margin - _ROUNDING
        return selected
    prompt = as_numpy(_array(kept["prompt_id"]).dictionary_encode().indices)
    chosen, rejected = as_numpy(kept["score_chosen"]), as_numpy(kept["score_rejected"])
    if isinstance(strategy, BestVsWorst):
        best = _first_of_each(prompt, -margin, id_keys(kept["pair_id"]))
    elif isinstance(strategy, BestVsLow):
        distance = distance_to_low(decisions, rows, strategy.deviations, rewards or {})
        leaders = _tops(prompt, chosen)
        best = np.zeros(len(rows), np.bool_)
        best[leaders] = _first_of_each(
            prompt[leaders], distance[leaders], id_keys(kept["pair_id"])[leaders]
        )
    elif isinstance(strategy, CorrectVsIncorrect):
        best = _right_and_wrong(decisions.take(as_arrow(rows)), prompt, strategy, rewards or {})
    elif isinstance(strategy, BestVsRandom):
        best = _first_of_each(prompt, -chosen, _draw_keys(kept["pair_id"], seed))
    else:
        best = _are_neighbours(prompt, chosen, rejected)
    selected[rows] = best
    return selected


def _right_and_wrong(
    kept: pa.Table, prompt: NDArray[np.int32], strategy: CorrectVsIncorrect, rewards: Rewards
) -> NDArray[np.bool_]:
    """Of a prompt's pairs with a right chosen and a wrong rejected answer, the first few by how far
    their lengths are apart, in proportion."""
    chosen, rejected = (
        np.array([rewards.get(one, np.nan) for one in kept[f"{side}_id"].to_pylist()])
        for side in ("chosen", "rejected")
    )
    of_both = np.flatnonzero(
        (chosen >= strategy.correct - _ROUNDING) & (rejected < strategy.correct - _ROUNDING)
    )
    one, other = (lengths[of_both] for lengths in compared_lengths(kept))
    apart = np.abs(np.log((one + 1) / (other + 1)))
    keys, group = id_keys(kept["pair_id"])[of_both], prompt[of_both]
    order = np.lexsort((keys, apart, group))
    _, sizes = np.unique(group, return_counts=True)
    position = np.arange(len(order)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    found = np.zeros(len(kept), np.bool_)
    found[of_both[order[position < strategy.pairs]]] = True
    return found


def id_keys(ids: pa.Array | pa.ChunkedArray) -> Keys:
    """The first 64 bits of content ids, in the order of the ids: uint64 [N].

    Two of a million ids share them with probability 3e-8. Raises ``LabelerError`` for an id that
    is not 32 hexadecimal characters.
    """
    array = _array(ids)
    if len(array) == 0:
        return np.zeros(0, np.uint64)
    lengths = pc.min_max(pc.binary_length(array))
    if array.null_count or {lengths["min"].as_py(), lengths["max"].as_py()} != {_ID_LENGTH}:
        raise LabelerError(_NO_ID)
    fixed = array.cast(pa.binary()).cast(pa.binary(_ID_LENGTH))
    words = np.frombuffer(fixed.buffers()[1], np.uint64).reshape(-1, _ID_LENGTH // 8)
    digits = np.ascontiguousarray(words[fixed.offset : fixed.offset + len(fixed), :2])
    # Of digits and small letters, every byte with the bit 0x40 has the bit 0x20 too.
    if (digits >> np.uint64(1) & _CASE & ~digits).any():
        raise LabelerError(_NO_ID)
    try:
        keys = np.frombuffer(unhexlify(digits.tobytes()), ">u8")
    except ValueError:
        raise LabelerError(_NO_ID) from None
    return keys.astype(np.uint64)


def _array(column: pa.Array | pa.ChunkedArray) -> pa.Array:
    return column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column


def _combinations(
    counts: NDArray[np.int64],
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """All pairs i < j within consecutive groups of these sizes: i, j, and the group of each."""
    starts = np.cumsum(counts) - counts
    pairs = counts * (counts - 1) // 2
    offsets = np.cumsum(pairs) - pairs
    first, second = np.empty((2, int(pairs.sum())), np.int64)
    for count in np.unique(counts[counts > 1]):
        groups = np.flatnonzero(counts == count)
        i, j = np.triu_indices(count, 1)
        place = offsets[groups, None] + np.arange(len(i))
        first[place] = starts[groups, None] + i
        second[place] = starts[groups, None] + j
    return first, second, np.repeat(np.arange(len(counts)), pairs)


def _require_distinct(
    keys: Keys, group: NDArray[np.int64], ids: pa.Array, order: NDArray[np.int64]
) -> None:
    """Refuse two neighbours (of a sorted sequence) with the same prompt and the same id."""
    same = np.flatnonzero((keys[1:] == keys[:-1]) & (group[1:] == group[:-1]))
    if len(same):
        raise LabelerError(
            f"candidate {ids[order[same[0]]].as_py()} occurs twice in its prompt; "
            "merge identical candidates first"
        )


def _pair_ids(prompt: pa.Array, a: pa.Array, b: pa.Array) -> pa.Array:
    """``prefloop.data.hashing.pair_id`` of each row, where ``a`` < ``b``."""
    # A copied state costs two thirds of a new one.
    begun, between = hashlib.blake2b(digest_size=_ID_LENGTH // 2), as_text("\x1f").cast(pa.binary())
    digests: list[bytes] = []
    for start in range(0, len(prompt), _HASH_ROWS):
        part = (column.slice(start, _HASH_ROWS).cast(pa.binary()) for column in (prompt, a, b))
        for row in pc.binary_join_element_wise(*part, between).to_pylist():
            state = begun.copy()
            state.update(row)
            digests.append(state.digest())
    ends = np.arange(len(digests) + 1, dtype=np.int32) * np.int32(_ID_LENGTH)
    characters = pa.py_buffer(b"".join(digests).hex().encode())
    return pa.Array.from_buffers(pa.string(), len(digests), [None, pa.py_buffer(ends), characters])


def _draw_keys(pair_ids: pa.Array | pa.ChunkedArray, seed: int) -> Keys:
    """Pseudo-random numbers [N] from the seed and the pair ids: the mixer of SplitMix64.

    Steele, Lea, Flood: "Fast splittable pseudorandom number generators", OOPSLA 2014.
    """
    # Mixed twice, as the ids are mixed with the seed by a mere exclusive or.
    return _mix(_mix(id_keys(pair_ids) ^ np.uint64(derive_seed(seed, "pairs"))))


def _mix(keys: Keys) -> Keys:
    mixed = keys + np.uint64(0x9E3779B97F4A7C15)
    mixed = (mixed ^ mixed >> np.uint64(30)) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ mixed >> np.uint64(27)) * np.uint64(0x94D049BB133111EB)
    return mixed ^ mixed >> np.uint64(31)


def _lowest(keys: Keys, group: NDArray[np.int64], count: int) -> NDArray[np.bool_]:
    """The rows with the ``count`` lowest keys of each group; ``group`` is sorted."""
    order = np.lexsort((keys, group))
    sizes = np.bincount(group)
    position = np.arange(len(keys)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    chosen = np.zeros(len(keys), np.bool_)
    chosen[order[position < count]] = True
    return chosen


def _tops(group: NDArray[np.int32], value: NDArray[np.float64]) -> NDArray[np.int64]:
    """The rows with the highest value of their group."""
    highest = np.full(int(group.max()) + 1, -np.inf)
    np.maximum.at(highest, group, value)
    return np.flatnonzero(value >= highest[group] - _ROUNDING)


def _sorted_by(group: NDArray[np.int64], keys: Keys) -> NDArray[np.int64]:
    """The rows by (group, key); groups are numbers from 0."""
    by_key = np.argsort(keys)
    # Of numbers of 16 bits a stable order takes no comparisons.
    few = np.uint16 if len(group) and group.max() < 2**16 else np.int64
    return by_key[np.argsort(group[by_key].astype(few), kind="stable")]


def _first_of_each(
    group: NDArray[np.int32], value: NDArray[np.float64], keys: Keys
) -> NDArray[np.bool_]:
    """The row of each group that comes first by (value, key)."""
    groups = int(group.max()) + 1
    value = np.where(np.isnan(value), np.inf, value)
    least = np.full(groups, np.inf)
    np.minimum.at(least, group, value)
    rows = np.flatnonzero(value == least[group])
    first = np.full(groups, np.iinfo(np.uint64).max, np.uint64)
    np.minimum.at(first, group[rows], keys[rows])
    rows = rows[keys[rows] == first[group[rows]]]
    _, leads = np.unique(group[rows], return_index=True)
    chosen = np.zeros(len(group), np.bool_)
    chosen[rows[leads]] = True
    return chosen


def _are_neighbours(
    group: NDArray[np.int32], chosen: NDArray[np.float64], rejected: NDArray[np.float64]
) -> NDArray[np.bool_]:
    """Rows whose chosen score directly follows the rejected score among the group's scores."""
    groups, scores = np.concatenate([group, group]), np.concatenate([chosen, rejected])
    order = np.lexsort((scores, groups))
    steps = (np.diff(groups[order]) != 0) | (np.diff(scores[order]) > _ROUNDING)
    rank = np.empty(len(order), np.int64)
    rank[order] = np.concatenate([[0], np.cumsum(steps)])
    neighbours: NDArray[np.bool_] = rank[: len(group)] - rank[len(group) :] == 1
    return neighbours
