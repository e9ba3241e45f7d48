"""The texts of candidates as a policy is to learn them: with or without the thought before them."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.compute as pc

from prefloop.data.reasoning import as_turn

TEXT_COLUMNS = ["text", "reasoning", "raw_text"]
"""Columns of candidates that the texts are made of."""


def answer_texts(candidates: pa.Table, *, with_thoughts: bool) -> pa.ChunkedArray:
    """One text for each of ``candidates`` (columns ``TEXT_COLUMNS``).

    ``with_thoughts``: of a policy that thought, what it wrote, marks and all; where its server took
    thought and answer apart, both in the form that most chat templates know.
    """
    if not with_thoughts or candidates["reasoning"].null_count == len(candidates):
        return candidates["text"]
    joined = [
        as_turn(row["reasoning"], row["text"]) if row["reasoning"] else row["text"]
        for row in candidates.select(TEXT_COLUMNS).to_pylist()
    ]
    return pc.coalesce(candidates["raw_text"], pa.chunked_array([pa.array(joined, pa.string())]))
