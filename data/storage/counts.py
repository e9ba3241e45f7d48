"""What the rows of a shard add up to: numbers by name, which are kept with them, so that nobody has
to read the rows to know how many there are of which kind.

The counts of two shards together are the sums of theirs. Of what is counted by a value, that stands
behind a slash: ``votes/judge``. Nothing here makes an Arrow scalar or array out of a Python value,
or numpy arrays by Arrow: the first one imports pandas, which takes longer than all the rest of a
status.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from prefloop.data.arrays import Bools, Floats

Sums = dict[str, float]
USAGE_COLUMNS = ["prompt_tokens", "completion_tokens", "cost", "reasoning_tokens"]
"""Of votes: what was spent on them."""
CANDIDATE_COLUMNS = [
    "origin", "tokens", "copies", "prompt_tokens", "cost", "reasoning_tokens",
]  # fmt: skip


def add(total: Sums, more: Sums) -> None:
    """Add ``more`` to ``total``."""
    for name, number in more.items():
        total[name] = total.get(name, 0) + number


def of_values(counts: Sums, name: str) -> dict[str, int]:
    """How often each value of what is counted as ``name`` occurs: most frequent first, then by
    value, so that equal runs print equally."""
    led = f"{name}/"
    found = {key.removeprefix(led): int(n) for key, n in counts.items() if key.startswith(led)}
    return dict(sorted(found.items(), key=lambda item: (-item[1], item[0])))


def count_candidates(table: pa.Table) -> Sums:
    """Sampled answers, identical ones counted each, and what was spent on them; thoughts are among
    the completion's tokens."""
    drawn = _is(table["origin"], "sampled")
    copies = _numbers(table["copies"])[drawn]

    def sampled(column: str) -> int:
        return int((_numbers(table[column])[drawn] * copies).sum())

    thoughts = sampled("reasoning_tokens")
    return {
        "samples": int(copies.sum()),
        "prompt_tokens": sampled("prompt_tokens"),
        "completion_tokens": sampled("tokens") + thoughts,
        "cost": float(_numbers(table["cost"])[drawn].sum()),
        "reasoning_tokens": thoughts,
    }


def count_votes(table: pa.Table) -> Sums:
    """Votes and invalid ones by labeler, and what was spent on them."""
    found = _by_value("votes", table["labeler"])
    wrong = _is(table["preference"], "invalid")
    for labeler in of_values(found, "votes"):
        if invalid := int((wrong & _is(table["labeler"], labeler)).sum()):
            found[f"invalid/{labeler}"] = invalid
    return found | {name: _sum(table[name]) for name in USAGE_COLUMNS}


def count_decisions(table: pa.Table) -> Sums:
    """Pairs that are kept, and those that are dropped by reason."""
    lost = table["reason"].filter(pc.invert(table["kept"]))
    return {"kept": _sum(table["kept"]), **_by_value("dropped", lost)}


def count_sources(table: pa.Table) -> Sums:
    """Prompts by source."""
    return _by_value("source", table["source"])


def count_reasons(table: pa.Table) -> Sums:
    """Rows that were set aside, by reason."""
    return _by_value("reason", table["reason"])


def _by_value(name: str, column: pa.ChunkedArray) -> Sums:
    # A dropped pair without a reason would be a bug; it is shown, never lost from the sum.
    return {
        f"{name}/{'unnamed' if pair['values'] is None else pair['values']}": int(pair["counts"])
        for pair in pc.value_counts(column).to_pylist()
    }


def _is(column: pa.ChunkedArray, value: str) -> Bools:
    """Which of the texts in ``column`` are ``value``."""
    coded = column.combine_chunks().dictionary_encode()
    known = coded.dictionary.to_pylist()
    code = known.index(value) if value in known else -1
    found: Bools = _numbers(coded.indices, missing=-2) == code
    return found


def _numbers(column: pa.ChunkedArray | pa.Array, *, missing: int = 0) -> Floats:
    """The numbers in ``column``, ``missing`` where there is none; up to 2**53 they are exact."""
    array = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    if not len(array):
        return np.zeros(0)
    known, values = array.buffers()
    start, end = array.offset, array.offset + len(array)
    numbers = np.frombuffer(values, array.type.to_pandas_dtype())[start:end].astype(np.float64)
    if array.null_count:
        bits = np.unpackbits(np.frombuffer(known, np.uint8), bitorder="little")[start:end]
        numbers[bits == 0] = missing
    return numbers


def _sum(column: pa.ChunkedArray) -> Any:
    return pc.sum(column).as_py() or 0
