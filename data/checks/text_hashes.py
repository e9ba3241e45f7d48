"""64-bit hashes of texts and conversations: enough to compare millions of them (XXH3).

Two of a million different texts share a hash with a chance of 3e-8.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import xxhash

from prefloop.data.checks.shapes import raw_texts

Hashes = npt.NDArray[np.uint64]

_ROLES = ("system", "user", "assistant", "tool")
_ODD = np.uint64(0x9E3779B97F4A7C15)
_OTHER_ODD = np.uint64(0xC2B2AE3D27D4EB4F)


def text_hashes(texts: pa.Array) -> Hashes:
    """Hash of each of ``texts`` (``string``, no nulls): uint64 [N]."""
    offsets, data = raw_texts(texts)
    view, digest = memoryview(data.data), xxhash.xxh3_64_intdigest
    places = offsets.tolist()
    return np.fromiter(
        (digest(view[start:end]) for start, end in pairwise(places)),
        np.uint64,
        len(texts),
    )


def conversation_hashes(lists: pa.Array) -> Hashes:
    """Hash of each conversation (MESSAGES, no nulls): of its turns, their roles and their order."""
    turns = lists.flatten()
    ends = np.cumsum(pc.list_value_length(lists).to_numpy(zero_copy_only=False).astype(np.int64))
    role = pc.index_in(turns.field("role"), pa.array(_ROLES)).to_numpy(zero_copy_only=False)
    starts = np.concatenate([[0], ends[:-1]])[: len(ends)]
    place = np.arange(len(turns)) - np.repeat(starts, ends - starts)
    of_turns = combine(text_hashes(turns.field("content")), (place * 4 + role).astype(np.uint64))
    sums = np.concatenate([[np.uint64(0)], np.cumsum(of_turns, dtype=np.uint64)])
    return combine(sums[ends] - sums[starts], (ends - starts).astype(np.uint64))


def combine(*parts: Hashes) -> Hashes:
    """One hash of several, whose order matters: uint64 [N]."""
    mixed = np.zeros_like(parts[0])
    for part in parts:
        # Multiplying and shifting in turn spreads each bit over the word (as SplitMix64 does).
        mixed = (mixed ^ part) * _ODD
        mixed ^= mixed >> np.uint64(29)
        mixed *= _OTHER_ODD
        mixed ^= mixed >> np.uint64(32)
    return mixed
