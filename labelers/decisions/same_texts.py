"""Which texts are the same but for case and white space, by their bytes where these tell."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from prefloop.data.arrays import Bools, Ints, as_arrow, as_numpy

_FOLDS_TO_ASCII = "\u00df\u0130\u0149\u017f\u01f0\u1e96-\u1e9a\u1e9e\u212a\ufb00-\ufb06"
"""The characters beyond ASCII whose case folding has ASCII in it, for a class of a pattern."""


def same_texts(texts: pa.Array, first: Ints, second: Ints) -> Bools:
    """Whether text ``first`` and text ``second`` of each pair are the same but for case (Unicode
    case folding) and white space: bool [N]; both are rows of ``texts`` (string), which has no null.

    Texts are normalised one by one only where the sums of their visible ASCII characters do not
    tell them apart already, since that takes several times as long.
    """
    if not len(texts):
        return np.zeros(len(first), np.bool_)
    bounds, characters = _bytes_of(texts)
    sums, unsure = _sums(bounds, characters), _fold_to_ascii(texts, characters)
    maybe = (sums[first] == sums[second]) | unsure[first] | unsure[second]
    maybe &= first != second
    rows = np.unique(np.concatenate([first[maybe], second[maybe]]))
    numbers: dict[str, int] = {}
    code = np.zeros(len(texts), np.int64)
    code[rows] = [
        numbers.setdefault(" ".join(text.split()).casefold(), len(numbers))
        for text in texts.take(as_arrow(rows)).to_pylist()
    ]
    same: Bools = first == second
    same[maybe] = code[first[maybe]] == code[second[maybe]]
    return same


def _bytes_of(texts: pa.Array) -> tuple[Ints, NDArray[np.uint8]]:
    """Where each of T texts begins, and the last one ends [T + 1], in the bytes of them all."""
    texts = texts.cast(pa.large_string())
    _, offsets, characters = texts.buffers()
    bounds = np.frombuffer(offsets, np.int64)[texts.offset : texts.offset + len(texts) + 1]
    if bounds[0] == bounds[-1]:
        return bounds, np.zeros(0, np.uint8)
    return bounds - bounds[0], np.frombuffer(characters, np.uint8)[bounds[0] : bounds[-1]]


def _sums(bounds: Ints, characters: NDArray[np.uint8]) -> NDArray[np.uint32]:
    """A number for each text [T], of its visible ASCII characters without regard to case: another
    number, another text, but where one has ``_FOLDS_TO_ASCII``."""
    found = np.zeros(len(bounds) - 1, np.uint32)
    some = np.flatnonzero(np.diff(bounds))
    if len(some):
        visible = characters - np.uint8(33) < 94  # wraps around below 33
        # The two cases of a letter differ in this bit alone.
        lower = (characters | np.uint8(32)) * visible
        found[some] = np.add.reduceat(lower, bounds[some], dtype=np.uint32)
    return found


def _fold_to_ascii(texts: pa.Array, characters: NDArray[np.uint8]) -> Bools:
    if characters.max(initial=0) < 128:
        return np.zeros(len(texts), np.bool_)
    found: Bools = as_numpy(pc.match_substring_regex(texts, f"[{_FOLDS_TO_ASCII}]"))
    return found
