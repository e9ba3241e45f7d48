"""Names for arrays of one dtype, whatever their shape, the way between numpy and Arrow, and where
values stand among others.

Arrow's own ways, and every Arrow scalar or array that is made of a Python value, import pandas the
first time: a third of a second in each process, as long as some ten thousand rows take to filter
and write.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

Bools = npt.NDArray[np.bool_]
Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

_ALIKE = {np.dtype(one): kind for one, kind in (
    (np.int8, pa.int8()), (np.int32, pa.int32()), (np.int64, pa.int64()),
    (np.uint64, pa.uint64()), (np.float64, pa.float64()), (np.bool_, pa.bool_()),
)}  # fmt: skip


def as_arrow(values: npt.NDArray[Any], mask: Bools | None = None) -> pa.Array:
    """Numbers or truth values [N] as an Arrow array, null where the ``mask`` [N] is true. It shares
    the memory of numbers."""
    is_there = None if mask is None else pa.py_buffer(np.packbits(~mask, bitorder="little"))
    is_truth = values.dtype == np.bool_
    data = np.packbits(values, bitorder="little") if is_truth else np.ascontiguousarray(values)
    kind = _ALIKE[values.dtype]
    return pa.Array.from_buffers(kind, len(values), [is_there, pa.py_buffer(data)])


def as_texts(values: Sequence[str]) -> pa.Array:
    """Texts as an Arrow array (string)."""
    encoded = [one.encode() for one in values]
    ends = np.cumsum([0, *map(len, encoded)], dtype=np.int32)
    buffers = [None, pa.py_buffer(ends), pa.py_buffer(b"".join(encoded))]
    return pa.Array.from_buffers(pa.string(), len(encoded), buffers)


def as_text(value: str) -> pa.Scalar:
    """A text as an Arrow scalar."""
    return as_texts([value])[0]


def as_numpy(column: pa.ChunkedArray | pa.Array) -> npt.NDArray[Any]:
    """Numbers or truth values [N], which share the memory of ``column`` where they can and must not
    be changed. Where some are null, all are float64, and these are NaN."""
    array = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    if pa.types.is_null(array.type):
        return np.full(len(array), np.nan)
    is_truth = pa.types.is_boolean(array.type)
    dtype = np.dtype(np.bool_ if is_truth else array.type.to_pandas_dtype())
    if not len(array):
        return np.zeros(0, dtype)
    is_there, data = array.buffers()
    values = _bits(data, array) if is_truth else np.frombuffer(data, dtype)
    if not is_truth:
        values = values[array.offset : array.offset + len(array)]
    return np.where(_bits(is_there, array), values, np.nan) if array.null_count else values


def _bits(buffer: pa.Buffer, array: pa.Array) -> Bools:
    """The bits of a buffer of ``array``."""
    every = np.unpackbits(np.frombuffer(buffer, np.uint8), bitorder="little")
    return every[array.offset : array.offset + len(array)].astype(np.bool_)


NOWHERE = -1
"""The place of a value that does not stand among the others."""


def places_in(known: pa.ChunkedArray, *columns: pa.ChunkedArray) -> list[Ints]:
    """Where in ``known`` each value of each of ``columns``, of the same type, stands first, or
    ``NOWHERE``. For several columns at once ``known`` is looked through once."""
    every = pa.chunked_array([part for column in columns for part in column.chunks], known.type)
    found = as_numpy(pc.index_in(every, value_set=known.combine_chunks()))
    rows = np.nan_to_num(found, nan=NOWHERE).astype(np.int64)
    ends = np.cumsum([len(column) for column in columns])
    return np.split(rows, ends[:-1])
