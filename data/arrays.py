"""Names for arrays of one dtype, whatever their shape, and where values stand among others."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

Bools = npt.NDArray[np.bool_]
Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

NOWHERE = -1
"""The place of a value that does not stand among the others."""


def places_in(known: pa.ChunkedArray, *columns: pa.ChunkedArray) -> list[Ints]:
    """Where in ``known`` each value of each of ``columns``, of the same type, stands first, or
    ``NOWHERE``. For several columns at once ``known`` is looked through once."""
    every = pa.chunked_array([part for column in columns for part in column.chunks], known.type)
    found = pc.index_in(every, value_set=known.combine_chunks())
    if found.null_count:
        found = pc.fill_null(found, NOWHERE)
    ends = np.cumsum([len(column) for column in columns])
    return np.split(found.to_numpy().astype(np.int64), ends[:-1])
