"""Which words of two answers are not in the other one, at the same place."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from difflib import SequenceMatcher

Parts = list[tuple[str, bool]]
"""A text in pieces, each with whether it differs; joined, they are the text."""

_CJK = "\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff"
_WORD = re.compile(rf"\s+|(?:[{_CJK}]|[^\W{_CJK}]+|[^\w\s])\s*")
"""A word and the white space behind it: scripts without spaces between words go by character."""
_MOST = 1_500
"""Words of an answer; what compares two grows with the square of them."""


def differences(one: str, other: str) -> tuple[Parts, Parts] | None:
    """Both texts in pieces, or null where they are too long to compare.

    White space alone is no difference.
    """
    words = _WORD.findall(one), _WORD.findall(other)
    if max(map(len, words)) > _MOST:
        return None
    keys = [[word.strip() for word in side] for side in words]
    # As it comes, the matcher takes frequent words of long texts for noise.
    matcher = SequenceMatcher(None, keys[0], keys[1], autojunk=False)
    pieces: tuple[Parts, Parts] = ([], [])
    for kind, *spans in matcher.get_opcodes():
        for side, start, stop, found in zip(words, spans[::2], spans[1::2], pieces, strict=True):
            if start < stop:
                found.append(("".join(side[start:stop]), kind != "equal"))
    return pieces


def cut_parts(parts: Iterable[tuple[str, bool]], most: int | None) -> Iterator[tuple[str, bool]]:
    """The first ``most`` characters of a text in pieces; all of it where that is null."""
    left = most
    for text, differs in parts:
        if left is not None:
            text = text[:left]
            left -= len(text)
        if text:
            yield text, differs
