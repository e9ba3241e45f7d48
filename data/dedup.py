"""Near-duplicate texts: MinHash finds the candidates, and the real Jaccard similarity decides."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Sequence
from typing import Any

from data.config import NearDuplicates

_SPACE = re.compile(r"\s+")
_CHARACTERS = 5  # in a shingle of a text with too few words for one


def normalise(text: str) -> str:
    """``text`` as it is compared: NFKC, case folded, white space squeezed."""
    return _SPACE.sub(" ", unicodedata.normalize("NFKC", text).casefold()).strip()


def shingles(text: str, n: int) -> frozenset[str]:
    """The runs of ``n`` words in ``text``, normalised; of characters where it has fewer words."""
    normal = normalise(text)
    words = normal.split(" ")
    if len(words) >= n:
        return frozenset(" ".join(words[i : i + n]) for i in range(len(words) - n + 1))
    last = max(len(normal) - _CHARACTERS, 0)
    return frozenset(normal[i : i + _CHARACTERS] for i in range(last + 1))


def near_duplicates(texts: Sequence[str], config: NearDuplicates, *, seed: int) -> list[int | None]:
    """For each text [N] the index of the earlier text that it nearly repeats, or None.

    Only texts that are no duplicates themselves are compared with, so chains do not drift. The
    Jaccard similarity of the shingles (Broder 1997) is at least ``config.threshold``; MinHash
    (seeded) only decides which texts are compared at all.
    """
    index = _Index(config, seed)
    found: list[int | None] = []
    for number, (text, sketch) in enumerate(_sketches(texts, config, seed)):
        match = index.match(text, sketch)
        found.append(match)
        if match is None:
            index.add(number, text, sketch)
    return found


def overlaps(
    texts: Sequence[str], others: Sequence[str], config: NearDuplicates, *, seed: int
) -> list[int | None]:
    """For each text [N] the index of the text of ``others`` that it nearly repeats, or None."""
    index = _Index(config, seed)
    for number, (text, sketch) in enumerate(_sketches(others, config, seed)):
        index.add(number, text, sketch)
    return [index.match(text, sketch) for text, sketch in _sketches(texts, config, seed)]


class _Index:
    """Shingle sets by number, found again by MinHash and compared for real."""

    def __init__(self, config: NearDuplicates, seed: int) -> None:
        from datasketch import MinHashLSH

        self._threshold = config.threshold
        # False negatives cost more than a few needless comparisons.
        self._lsh = MinHashLSH(
            threshold=config.threshold, num_perm=config.num_perm, weights=(0.2, 0.8)
        )
        self._texts: dict[int, frozenset[str]] = {}

    def add(self, number: int, text: frozenset[str], sketch: Any) -> None:
        self._texts[number] = text
        self._lsh.insert(number, sketch)

    def match(self, text: frozenset[str], sketch: Any) -> int | None:
        for number in sorted(self._lsh.query(sketch)):
            other = self._texts[number]
            if len(text & other) >= self._threshold * len(text | other):
                return int(number)
        return None


def _sketches(
    texts: Sequence[str], config: NearDuplicates, seed: int
) -> Iterator[tuple[frozenset[str], Any]]:
    from datasketch import MinHash

    sets = [shingles(text, config.ngram) for text in texts]
    encoded = (
        [shingle.encode("utf-8", "surrogatepass") for shingle in sorted(one)] for one in sets
    )
    hashes = MinHash.generator(encoded, num_perm=config.num_perm, seed=seed % 2**32)
    yield from zip(sets, hashes, strict=True)
