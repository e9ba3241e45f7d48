"""Answers that differ in white space, letter case or Unicode form only."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from prefloop.data.arrays import Bools
from prefloop.data.checks.shapes import Shapes
from prefloop.data.prompts.dedup import normalise

_HEAD_WORDS = 4


def same_when_normalised(chosen: pa.Array, rejected: pa.Array, a: Shapes, b: Shapes) -> Bools:
    """Rows whose two texts are equal once normalised (``prefloop.data.prompts.dedup.normalise``):
    bool [N].

    ``a`` and ``b`` are the shapes of ``chosen`` and ``rejected``.
    """
    # ASCII texts that are equal so have equally many words; for others heads are compared first.
    possible = (a.words == b.words) | a.beyond_ascii | b.beyond_ascii
    places = np.flatnonzero(possible)
    where = pa.array(places)
    texts = zip(chosen.take(where).to_pylist(), rejected.take(where).to_pylist(), strict=True)
    found = np.zeros(len(chosen), dtype=bool)
    found[places] = [_same(one, other) for one, other in texts]
    return found


def _same(one: str, other: str) -> bool:
    if one == other:
        return True
    # Normalising never joins what white space parts, so equal texts have equal beginnings.
    heads = [
        normalise(" ".join(text.split(None, _HEAD_WORDS)[:_HEAD_WORDS])).split()
        for text in (one, other)
    ]
    if any(x != y for x, y in zip(*heads, strict=False)):
        return False
    return normalise(one) == normalise(other)
