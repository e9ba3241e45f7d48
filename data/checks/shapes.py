"""How long texts are and which bytes they hold: one look at each byte, none at each character."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from prefloop.data.arrays import Bools

_SPACE, _CONTROL, _MARKUP = 1, 2, 4
_CLASSES = np.zeros(256, dtype=np.uint8)
_CLASSES[[*range(9, 14), *range(28, 32), 32]] |= _SPACE
_CLASSES[[*range(9), 11, 12, *range(14, 32), 127]] |= _CONTROL
_CLASSES[[ord("<"), ord("&"), ord("[")]] |= _MARKUP


@dataclass(frozen=True)
class Shapes:
    """Of N texts: lengths (int32 [N]) and what they hold (bool [N])."""

    chars: npt.NDArray[np.int32]
    """Unicode code points."""
    words: npt.NDArray[np.int32]
    """Runs of characters between ASCII white space (what ``str.split`` gives for ASCII text)."""
    beyond_ascii: Bools
    control: Bools
    """Holds an ASCII control character other than tab, line feed and carriage return."""
    markup: Bools
    """Holds ``<``, ``&`` or ``[``, so markup is possible."""


def shapes(texts: pa.Array) -> Shapes:
    """The shapes of ``texts``, a ``string`` array without nulls."""
    count = len(texts)
    chars = pc.utf8_length(texts).to_numpy(zero_copy_only=False).astype(np.int32)
    offsets, data = raw_texts(texts)
    if not len(data):
        none = np.zeros(count, dtype=bool)
        return Shapes(chars, np.zeros(count, np.int32), none, none, none)
    classes = _CLASSES[data]
    space = (classes & _SPACE).view(bool)
    begins = np.empty(len(data), dtype=bool)
    begins[0] = True
    begins[1:] = space[:-1]
    # A text begins a word wherever the one before it ended; empty texts at the end begin nothing.
    begins[offsets[:-1][offsets[:-1] < len(data)]] = True
    begins &= ~space
    words = np.diff(np.searchsorted(np.flatnonzero(begins), offsets))
    return Shapes(
        chars=chars,
        words=words.astype(np.int32),
        beyond_ascii=chars != np.diff(offsets),
        control=_holding(classes, _CONTROL, offsets),
        markup=_holding(classes, _MARKUP, offsets),
    )


def raw_texts(texts: pa.Array) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.uint8]]:
    """Offsets [N + 1] from 0 on, and the bytes of all texts one after the other."""
    _, offset_buffer, data_buffer = texts.buffers()
    if offset_buffer is None or data_buffer is None:
        return np.zeros(len(texts) + 1, np.int64), np.zeros(0, np.uint8)
    offsets = np.frombuffer(offset_buffer, np.int32, len(texts) + 1, 4 * texts.offset)
    data = np.frombuffer(data_buffer, np.uint8)[offsets[0] : offsets[-1]]
    return offsets.astype(np.int64) - int(offsets[0]), data


def _holding(classes: npt.NDArray[np.uint8], kind: int, offsets: npt.NDArray[np.int64]) -> Bools:
    places = np.flatnonzero(classes & kind)
    return np.asarray(np.diff(np.searchsorted(places, offsets)) > 0)
