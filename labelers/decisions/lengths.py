"""Lengths of two answers that compare: in tokens where one tokenizer counted both, else in
characters.

Tokenizers differ in how many tokens they make of the same text, by a third and more, so between
answers of different models the number of tokens says who wrote and not how much.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from prefloop.data.arrays import Ints

LENGTH_COLUMNS = ["chosen_tokens", "rejected_tokens", "chosen_chars", "rejected_chars"]
"""What ``compared_lengths`` reads."""

_SAMPLED = "sampled"


def with_characters(decisions: pa.Table, candidates: pa.Table) -> pa.Table:
    """``decisions`` (schema DECISION) with ``chosen_chars`` and ``rejected_chars`` where tokens do
    not compare, and null elsewhere.

    One tokenizer counted two answers that the same weights sampled (``candidates`` needs
    ``candidate_id, text, origin, policy_revision``), and two that were there before, which are all
    counted alike.
    """
    ids = candidates["candidate_id"].combine_chunks()
    chosen, rejected = (
        pc.index_in(decisions[f"{side}_id"], value_set=ids) for side in ("chosen", "rejected")
    )
    sampled = pc.equal(candidates["origin"], _SAMPLED)
    counted = pc.if_else(sampled, candidates["policy_revision"], "")
    alike = pc.equal(counted.take(chosen), counted.take(rejected))
    lengths = pc.utf8_length(candidates["text"]).cast(pa.int32())
    for name, rows in (("chosen_chars", chosen), ("rejected_chars", rejected)):
        column = pc.if_else(alike, pa.scalar(None, pa.int32()), lengths.take(rows))
        place = decisions.column_names.index(name)
        decisions = decisions.set_column(place, decisions.schema.field(name), column)
    return decisions


def compared_lengths(decisions: pa.Table) -> tuple[Ints, Ints]:
    """Lengths of chosen and of rejected [N], each two in one unit."""
    chosen, rejected = (
        pc.coalesce(decisions[f"{side}_chars"], decisions[f"{side}_tokens"])
        .to_numpy()
        .astype(np.int64)
        for side in ("chosen", "rejected")
    )
    return chosen, rejected
