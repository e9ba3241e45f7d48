"""Thoughts in answers: whether there is one, whether it ends, and marks of one further behind."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from prefloop.data.conversations.reasoning import split_thought

THOUGHT, UNCLOSED = 1, 2
"""Bits: the answer has a thought in front of it, or marks of one; the thought never ends."""
_MARKS = (
    r"(?i)<\s*/?\s*(?:\w+:)?(?:think|thought)|\[\s*/?\s*think|◁\s*/?\s*think"
    r"|<\|(?:begin|end)_of_thought|<\|(?:start|end)_thinking|<unused9[45]>|<\|channel\|?>"
    r"|<channel\|>|^\s*analysis[A-Z\"]"
)
"""A text without a match has no thought (RE2; a first look, so that few are read closely)."""


def find_thoughts(texts: pa.Array) -> npt.NDArray[np.uint8]:
    """What thoughts each of ``texts`` (``string``, no nulls) holds: uint8 [N], bits as above."""
    found = np.zeros(len(texts), dtype=np.uint8)
    hits = pc.match_substring_regex(texts, _MARKS).to_numpy(zero_copy_only=False)
    for place in np.flatnonzero(hits):
        thought = split_thought(texts[place].as_py(), opened=None)
        if thought.reasoning is not None:
            found[place] = THOUGHT if thought.closed else THOUGHT | UNCLOSED
    return found
