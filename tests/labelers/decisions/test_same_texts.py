"""Texts that are the same but for case and white space."""

from __future__ import annotations

import re
import sys

import numpy as np
import pyarrow as pa
import pytest

from prefloop.labelers.decisions import same_texts as module
from prefloop.labelers.decisions.same_texts import same_texts

ALPHABET = [
    *"aAbBsSkKfi  \t\n\x1c\x00.!~",
    "\u00df", "\u1e9e", "\u017f", "\u212a", "\ufb01", "\u00a0", "\u2003", "\u00e9", "\u00c9",
    "\u0301", "\u200b", "\u4e2d", "\U0001f600", "\u0130", "\u0131", "\u03c3", "\u03c2", "\u03a3",
]  # fmt: skip


def normalised(text: str) -> str:
    return " ".join(text.split()).casefold()


def compared(texts: list[str], first: np.ndarray, second: np.ndarray) -> list[bool]:
    return same_texts(pa.array(texts, pa.string()), first, second).tolist()


@pytest.mark.parametrize("sliced", [False, True])
def test_they_are_compared_as_one_by_one(sliced: bool) -> None:
    generator = np.random.default_rng(0)
    texts = ["".join(generator.choice(ALPHABET, generator.integers(0, 4))) for _ in range(3_000)]
    first, second = generator.integers(0, len(texts), (2, 60_000))
    wanted = [
        normalised(texts[a]) == normalised(texts[b]) for a, b in zip(first, second, strict=True)
    ]
    assert 0 < sum(wanted) < len(wanted)
    given = pa.array(["more", *texts], pa.string())[1:] if sliced else pa.array(texts, pa.string())
    assert same_texts(given, first, second).tolist() == wanted


def test_no_character_beyond_ascii_that_folds_to_it_is_missed() -> None:
    folds = re.compile(f"[{module._FOLDS_TO_ASCII}]")
    for point in [*range(128, 0xD800), *range(0xE000, sys.maxunicode + 1)]:
        character = chr(point)
        has_ascii = any("!" <= one <= "~" for one in character.casefold())
        assert bool(folds.fullmatch(character)) == has_ascii, hex(point)


def test_no_texts_and_no_pairs() -> None:
    none = np.zeros(0, np.int64)
    assert compared([], none, none) == []
    assert compared(["", " "], np.array([0]), np.array([1])) == [True]
