"""Which texts hold nothing to read, by their first bytes where these tell."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from prefloop.data.arrays import Bools, as_arrow, as_numpy
from prefloop.data.utf8 import BLANK


def are_blank(texts: pa.ChunkedArray) -> Bools:
    """Whether each of ``texts`` (string, without nulls) holds white space and invisible characters
    at most [T]. Patterns are tried on those alone that do not begin with a visible ASCII character,
    since that takes several times as long."""
    if not len(texts):
        return np.zeros(0, np.bool_)
    whole = texts.combine_chunks().cast(pa.large_string())
    _, offsets, characters = whole.buffers()
    begins = np.frombuffer(offsets, np.int64)[whole.offset : whole.offset + len(whole) + 1]
    blank = np.ones(len(whole), np.bool_)
    some = np.flatnonzero(np.diff(begins))
    if len(some):
        first = np.frombuffer(characters, np.uint8)[begins[some]]
        blank[some] = first - np.uint8(33) >= 94  # wraps around below 33
    unsure = np.flatnonzero(blank)
    blank[unsure] = as_numpy(pc.match_substring_regex(whole.take(as_arrow(unsure)), BLANK))
    return blank
