"""Lengths of two answers that compare: in tokens where one tokenizer counted both, else in
characters.

Tokenizers differ in how many tokens they make of the same text, by a third and more, so between
answers of different models the number of tokens says who wrote and not how much.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from prefloop.data.arrays import NOWHERE, Ints, as_arrow, as_numpy, as_text

LENGTH_COLUMNS = ["chosen_tokens", "rejected_tokens", "chosen_chars", "rejected_chars"]
"""What ``compared_lengths`` reads."""

_SAMPLED = "sampled"


def with_characters(
    decisions: pa.Table, candidates: pa.Table, chosen: Ints, rejected: Ints
) -> pa.Table:
    """``decisions`` (schema DECISION) with ``chosen_chars`` and ``rejected_chars`` where tokens do
    not compare, and null elsewhere; ``chosen`` and ``rejected`` [N] are the rows of ``candidates``
    with their answers, or ``NOWHERE``.

    One tokenizer counted two answers that the same weights sampled (``candidates`` needs
    ``text, origin, policy_revision``), and two that were there before, which are all counted alike.
    """
    sampled = pc.equal(candidates["origin"], as_text(_SAMPLED))
    counted = pc.if_else(sampled, candidates["policy_revision"], as_text("")).combine_chunks()
    by = as_numpy(counted.dictionary_encode().indices)
    apart = np.zeros(len(decisions), np.bool_)
    known = (chosen != NOWHERE) & (rejected != NOWHERE)
    apart[known] = by[chosen[known]] != by[rejected[known]]
    for side, rows in (("chosen", chosen), ("rejected", rejected)):
        column = pa.nulls(len(decisions), pa.int32())
        if apart.any():
            lengths = as_numpy(pc.utf8_length(candidates["text"])).astype(np.int32)
            column = as_arrow(lengths[np.where(apart, rows, 0)], mask=~apart)
        name = f"{side}_chars"
        place = decisions.column_names.index(name)
        decisions = decisions.set_column(place, decisions.schema.field(name), column)
    return decisions


def compared_lengths(decisions: pa.Table) -> tuple[Ints, Ints]:
    """Lengths of chosen and of rejected [N], each two in one unit."""
    chosen, rejected = (
        as_numpy(pc.coalesce(decisions[f"{side}_chars"], decisions[f"{side}_tokens"])).astype(
            np.int64
        )
        for side in ("chosen", "rejected")
    )
    return chosen, rejected
