"""Near-duplicate texts, and texts that overlap with a reference set.

Texts are compared by their *shingles*: the set of all runs of ``ngram`` words. Punctuation marks
are words, so that "2 + 2" and "2 - 2" differ. Hashes only propose pairs; a pair counts when its
shingles, counted in full, reach the threshold.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from math import ceil
from typing import Any
from zlib import crc32

import numpy as np
import numpy.typing as npt

from prefloop.data.config import NearDuplicates
from prefloop.data.hashing import content_id, derive_seed

_UNSPACED = r"\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff"
"""Scripts written without spaces: each character is a word of its own."""
_WORD = re.compile(rf"[{_UNSPACED}]|[^\W{_UNSPACED}]+|[^\w\s]")
_CONTAINED_SHINGLES = 8
"""Shorter references are too common as a part of longer texts to call that an overlap."""
_ROUNDING = 1e-9
_MISS = 0.005
"""Chance that MinHash does not propose a pair of exactly the threshold's similarity."""


_MOST_MARKS = 30
_MANY_MARKS = re.compile(rf"[^\w\s\x00-\x7f]{{{_MOST_MARKS + 1},}}")


def normalise(text: str) -> str:
    """``text`` in Unicode NFKC, case-folded, every run of white space one space, ends stripped."""
    if not text.isascii():
        # Folding can undo the normal form, and the normal form of a folded text can be folded.
        text = _MANY_MARKS.sub(_parted, text)
        text = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    return " ".join(text.casefold().split())


def _parted(run: re.Match[str]) -> str:
    """Sorting the marks upon one letter takes the square of their number: as Unicode's stream-safe
    form has it (UAX 15), a joiner that counts for nothing stands behind each 30."""
    parts, marks = [], 0
    for character in run.group():
        marks = marks + 1 if unicodedata.combining(character) else 0
        if marks > _MOST_MARKS:
            parts.append("\u034f")
            marks = 1
        parts.append(character)
    return "".join(parts)


def shingles(text: str, n: int) -> frozenset[str]:
    """The runs of ``n`` words in a normalised text; with fewer words, of ``n`` characters."""
    words = _WORD.findall(text)
    if len(words) >= n:
        return frozenset(map(" ".join, zip(*(words[i:] for i in range(n)), strict=False)))
    if not text:
        return frozenset()
    return frozenset(text[i : i + n] for i in range(max(len(text) - n + 1, 1)))


def jaccard(a: frozenset[str], b: frozenset[str]) -> float:
    """Common shingles among all of both, 0 to 1; two empty sets are equal."""
    common = len(a & b)
    return common / (len(a) + len(b) - common) if a or b else 1.0


def near_duplicates(
    texts: Iterable[str],
    config: NearDuplicates,
    *,
    seed: int,
    groups: Iterable[str | None] | None = None,
) -> list[int | None]:
    """For each text the index of the first earlier text it nearly repeats, or None.

    An earlier text that is itself a duplicate is not compared with, so what is kept holds no two
    near-duplicates, and what is dropped is near to something kept. ``groups``: only texts with an
    equal group are compared.
    """
    normal = [normalise(text) for text in texts]
    labels = [None] * len(normal) if groups is None else list(groups)
    hits: list[int | None] = [None] * len(normal)
    first: dict[tuple[str, str | None], int] = {}
    kept_in: defaultdict[int, list[int]] = defaultdict(list)
    buckets = _shared_buckets(normal, labels, config, seed)
    for number, (text, label) in enumerate(zip(normal, labels, strict=True)):
        if (text, label) in first:
            # What an equal text is a duplicate of, so is this one.
            equal = first[text, label]
            hits[number] = equal if hits[equal] is None else hits[equal]
            continue
        first[text, label] = number
        own = buckets.get(number)
        if own is None:
            continue
        found = shingles(text, config.ngram)
        for other in sorted({kept for bucket in own for kept in kept_in[bucket]}):
            same_group = labels[other] == label
            if same_group and _near(found, shingles(normal[other], config.ngram), config):
                hits[number] = other
                break
        else:
            for bucket in own:
                kept_in[bucket].append(number)
    return hits


def overlaps(
    texts: Iterable[str], references: Sequence[str], *, threshold: float, ngram: int
) -> list[int | None]:
    """For each text the index of the first reference it overlaps with, or None.

    See :class:`OverlapIndex` for what an overlap is.
    """
    index = OverlapIndex(references, threshold=threshold, ngram=ngram)
    return [index.find(text) for text in texts]


class OverlapIndex:
    """Finds the reference that a text overlaps with. Exact: no hashing, no luck.

    A text overlaps with a reference when their Jaccard similarity is at least ``threshold``, or
    when it contains that share of the shingles of a reference of ten words or so and more.
    Either way it has at least ceil(threshold * size) of the reference's shingles, so it has one of
    the (size - that + 1) rarest: only those are indexed, which keeps phrases that every prompt has
    out of the index.
    """

    def __init__(self, references: Sequence[str], *, threshold: float, ngram: int) -> None:
        self._threshold = threshold
        self._ngram = ngram
        self._shingles = [shingles(normalise(text), ngram) for text in references]
        frequency = Counter(shingle for found in self._shingles for shingle in found)
        self._rare: defaultdict[str, list[int]] = defaultdict(list)
        for number, found in enumerate(self._shingles):
            by_rarity = sorted(found, key=lambda shingle: (frequency[shingle], shingle))
            needed = ceil(threshold * len(found) - _ROUNDING)
            for shingle in by_rarity[: len(found) - needed + 1]:
                self._rare[shingle].append(number)

    def find(self, text: str) -> int | None:
        """Index of the first reference that ``text`` overlaps with, or None."""
        found = shingles(normalise(text), self._ngram)
        proposed = {n for shingle in found & self._rare.keys() for n in self._rare[shingle]}
        for number in sorted(proposed):
            if self._overlap(found, self._shingles[number]):
                return number
        return None

    def _overlap(self, text: frozenset[str], reference: frozenset[str]) -> bool:
        common = len(text & reference)
        whole = len(text) + len(reference) - common
        if len(reference) >= _CONTAINED_SHINGLES:
            whole = len(reference)
        return common >= self._threshold * whole - _ROUNDING


def _near(a: frozenset[str], b: frozenset[str], config: NearDuplicates) -> bool:
    return jaccard(a, b) >= config.threshold - _ROUNDING


def _shared_buckets(
    texts: Sequence[str], labels: Sequence[str | None], config: NearDuplicates, seed: int
) -> dict[int, list[int]]:
    """The MinHash buckets of each text that shares one with another text of its group.

    Most texts share none and cost nothing beyond their band hashes (8 bytes a band), where
    datasketch's own tables would take some 10 KiB a text.
    """
    bands, rows = _bands(config.threshold, config.num_perm)
    hashes = _band_hashes(texts, labels, bands, rows, config, seed)
    found: defaultdict[int, list[int]] = defaultdict(list)
    bucket = 0
    for band in hashes.T:
        order = np.argsort(band, kind="stable")
        ends = np.flatnonzero(np.diff(band[order], append=band[order[-1:]] + np.uint64(1))) + 1
        starts = np.concatenate([[0], ends[:-1]])
        shared = ends - starts > 1
        for start, end in zip(starts[shared].tolist(), ends[shared].tolist(), strict=True):
            for number in order[start:end].tolist():
                found[number].append(bucket)
            bucket += 1
    return dict(found)


def _band_hashes(
    texts: Sequence[str],
    labels: Sequence[str | None],
    bands: int,
    rows: int,
    config: NearDuplicates,
    seed: int,
) -> npt.NDArray[np.uint64]:
    """Hash of each band of each text's MinHash: uint64 [texts, bands]."""
    from datasketch import MinHash

    # The scheme mixes the bits of the hash it is given, so a fast checksum will do.
    empty: Any = MinHash(config.num_perm, seed=derive_seed(seed, "minhash"), hashfunc=crc32)
    factors = np.random.default_rng(derive_seed(seed, "bands")).integers(
        1, 2**64, size=rows, dtype=np.uint64
    )
    hashes = np.empty((len(texts), bands), dtype=np.uint64)
    for number, (text, label) in enumerate(zip(texts, labels, strict=True)):
        minhash = empty.copy()
        minhash.update_batch([each.encode() for each in shingles(text, config.ngram)])
        values = minhash.hashvalues[: bands * rows].astype(np.uint64).reshape(bands, rows)
        hashes[number] = values @ factors
        if label is not None:
            hashes[number] ^= np.uint64(int(content_id(label)[:16], 16))
    return hashes


def _bands(threshold: float, num_perm: int) -> tuple[int, int]:
    """Bands and rows of the hash table: the most rows (the fewest false candidates) with which a
    pair of ``threshold`` similarity is missed with a chance of at most ``_MISS``."""
    for rows in range(num_perm // 2, 1, -1):
        bands = num_perm // rows
        if (1 - threshold**rows) ** bands <= _MISS:
            return bands, rows
    return num_perm, 1
