"""Which words of two answers are not in the other one, at the same place."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby

import numpy as np

Parts = list[tuple[str, bool]]
"""A text in pieces, each with whether it differs; joined, they are the text."""

_CJK = "\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff"
_WORD = re.compile(rf"\s+|(?:[{_CJK}]|[^\W{_CJK}]+|[^\w\s])\s*")
"""A word and the white space behind it: scripts without spaces between words go by character."""
_MOST = 3_000
"""Words of an answer; time and memory for two grow with the square of it, to a tenth of a second
and 20 MB."""


def differences(one: str, other: str) -> tuple[Parts, Parts] | None:
    """Both texts in pieces, or null where they are too long to compare.

    White space alone is no difference.
    """
    words = _WORD.findall(one), _WORD.findall(other)
    if max(map(len, words)) > _MOST:
        return None
    in_both = _in_both(*([word.strip() for word in side] for side in words))
    first, second = (_pieces(side, common) for side, common in zip(words, in_both, strict=True))
    return first, second


def _in_both(one: Sequence[str], other: Sequence[str]) -> tuple[list[bool], list[bool]]:
    """Of each word, whether it is in a longest sequence of words that both texts have.

    ``difflib`` would do, but takes minutes for answers that repeat themselves.
    """
    numbers: dict[str, int] = {}
    a, b = (
        np.array([numbers.setdefault(word, len(numbers)) for word in side], np.int32)
        for side in (one, other)
    )
    longest = np.zeros((len(a) + 1, len(b) + 1), np.int16)  # of the first i and the first j words
    for i, word in enumerate(a):
        row = np.maximum(longest[i, 1:], longest[i, :-1] + (b == word))
        np.maximum.accumulate(row, out=longest[i + 1, 1:])
    found = [False] * len(a), [False] * len(b)
    i, j = len(a), len(b)
    while i and j:
        if a[i - 1] == b[j - 1]:
            i, j = i - 1, j - 1
            found[0][i] = found[1][j] = True
        elif longest[i - 1, j] >= longest[i, j - 1]:
            i -= 1
        else:
            j -= 1
    return found


def _pieces(words: Sequence[str], common: Sequence[bool]) -> Parts:
    pairs = zip(words, common, strict=True)
    return [
        ("".join(word for word, _ in group), not same)
        for same, group in groupby(pairs, key=lambda pair: pair[1])
    ]


def cut_parts(parts: Iterable[tuple[str, bool]], most: int | None) -> Iterator[tuple[str, bool]]:
    """The first ``most`` characters of a text in pieces; all of it where that is null."""
    left = most
    for text, differs in parts:
        if left is not None:
            text = text[:left]
            left -= len(text)
        if text:
            yield text, differs
