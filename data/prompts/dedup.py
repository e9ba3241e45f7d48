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
from itertools import chain
from math import ceil
from typing import Protocol
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
_TOGETHER = 1000
_MISS = 0.005
"""Chance that MinHash does not propose a pair of exactly the threshold's similarity."""


_MOST_MARKS = 30
_MANY_MARKS = re.compile(rf"[^\w\s\x00-\x7f]{{{_MOST_MARKS + 1},}}")


class Texts(Protocol):
    """Texts that can be asked for, one by one and again: a list, or a column of a table."""

    def __len__(self) -> int: ...

    def __getitem__(self, number: int, /) -> str: ...


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
    texts: Texts,
    config: NearDuplicates,
    *,
    seed: int,
    groups: Iterable[str | None] | None = None,
) -> list[int | None]:
    """For each text the index of the first earlier text it nearly repeats, or None.

    An earlier text that is itself a duplicate is not compared with, so what is kept holds no two
    near-duplicates, and what is dropped is near to something kept. ``groups``: only texts with an
    equal group are compared. Of the texts no more than hashes is kept; the few that are compared in
    full are asked for again.
    """
    labels = [None] * len(texts) if groups is None else list(groups)
    hits: list[int | None] = [None] * len(texts)
    first: dict[bytes, int] = {}
    kept_in: defaultdict[int, list[int]] = defaultdict(list)
    digests, buckets = _shared_buckets(texts, labels, config, seed)

    def shingles_of(number: int) -> frozenset[str]:
        return shingles(normalise(texts[number]), config.ngram)

    for number, (digest, label) in enumerate(zip(digests, labels, strict=True)):
        equal = first.setdefault(digest, number)
        if equal != number:
            # What an equal text is a duplicate of, so is this one.
            hits[number] = equal if hits[equal] is None else hits[equal]
            continue
        own = buckets.get(number)
        if own is None:
            continue
        found = shingles_of(number)
        for other in sorted({kept for bucket in own for kept in kept_in[bucket]}):
            same_group = labels[other] == label
            if same_group and _near(found, shingles_of(other), config):
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
        rare: defaultdict[str, list[int]] = defaultdict(list)
        for number, found in enumerate(self._shingles):
            by_rarity = sorted(found, key=lambda shingle: (frequency[shingle], shingle))
            needed = ceil(threshold * len(found) - _ROUNDING)
            for shingle in by_rarity[: len(found) - needed + 1]:
                rare[shingle].append(number)
        self._rare = dict(rare)

    def find(self, text: str) -> int | None:
        """Index of the first reference that ``text`` overlaps with, or None."""
        return self.find_normal(normalise(text))

    def find_normal(self, text: str) -> int | None:
        """The same for a text that is normalised already."""
        if not self._rare:
            return None
        proposed = {n for shingle in self._in_rare(text) for n in self._rare[shingle]}
        if not proposed:
            return None
        found = shingles(text, self._ngram)
        for number in sorted(proposed):
            if self._overlap(found, self._shingles[number]):
                return number
        return None

    def _in_rare(self, text: str) -> set[str]:
        """The rare shingles of references that a normalised text has."""
        words = _WORD.findall(text)
        if len(words) < self._ngram:
            return set(shingles(text, self._ngram) & self._rare.keys())
        runs = zip(*(words[i:] for i in range(self._ngram)), strict=False)
        return {shingle for shingle in map(" ".join, runs) if shingle in self._rare}

    def _overlap(self, text: frozenset[str], reference: frozenset[str]) -> bool:
        common = len(text & reference)
        whole = len(text) + len(reference) - common
        if len(reference) >= _CONTAINED_SHINGLES:
            whole = len(reference)
        return common >= self._threshold * whole - _ROUNDING


def _near(a: frozenset[str], b: frozenset[str], config: NearDuplicates) -> bool:
    return jaccard(a, b) >= config.threshold - _ROUNDING


def _shared_buckets(
    texts: Texts, labels: Sequence[str | None], config: NearDuplicates, seed: int
) -> tuple[list[bytes], dict[int, list[int]]]:
    """A digest of each text and its group, and the MinHash buckets of each text that shares one
    with another text of its group.

    Most texts share none and cost nothing beyond their band hashes (8 bytes a band), where
    datasketch's own tables would take some 10 KiB a text.
    """
    bands, rows = _bands(config.threshold, config.num_perm)
    digests, hashes = _band_hashes(texts, labels, bands, rows, config, seed)
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
    return digests, dict(found)


def _band_hashes(
    texts: Texts,
    labels: Sequence[str | None],
    bands: int,
    rows: int,
    config: NearDuplicates,
    seed: int,
) -> tuple[list[bytes], npt.NDArray[np.uint64]]:
    """A digest of each text and its label, and the hash of each band of its MinHash: uint64
    [texts, bands]."""
    factors = np.random.default_rng(derive_seed(seed, "bands")).integers(
        1, 2**64, size=rows, dtype=np.uint64
    )
    minhashes = _MinHashes(config.num_perm, derive_seed(seed, "minhash"), bands * rows)
    hashes = np.empty((len(texts), bands), dtype=np.uint64)
    digests: list[bytes] = []
    for start in range(0, len(texts), _TOGETHER):
        codes: list[list[int]] = []
        mixed: list[int] = []
        for number in range(start, min(start + _TOGETHER, len(texts))):
            text, label = normalise(texts[number]), labels[number]
            codes.append(_shingle_codes(text, config.ngram))
            mixed.append(0 if label is None else int(content_id(label)[:16], 16))
            digests.append(bytes.fromhex(content_id(text, *([] if label is None else [label]))))
        values = minhashes.of(codes).astype(np.uint64).reshape(len(codes), bands, rows)
        hashes[start : start + len(codes)] = values @ factors ^ np.array(mixed, np.uint64)[:, None]
    return digests, hashes


def _shingle_codes(text: str, n: int) -> list[int]:
    """A checksum of each of the :func:`shingles` of a normalised text. The permutations mix the
    bits, so a fast one will do."""
    words = _WORD.findall(text)
    if len(words) < n:
        return [crc32(shingle.encode()) for shingle in shingles(text, n)]
    found = set(zip(*(words[i:] for i in range(n)), strict=False))
    if text.isascii():  # one encoding for all
        joined = "\n".join(map(" ".join, found)).encode("ascii")
        return list(map(crc32, joined.split(b"\n")))
    return [crc32(" ".join(run).encode()) for run in found]


class _MinHashes:
    """datasketch's MinHash of many texts at once: to the bit what ``update_batch`` of its scheme
    ``affine32`` gives for each."""

    def __init__(self, num_perm: int, seed: int, wanted: int) -> None:
        """Only the first ``wanted`` of ``num_perm`` permutations are looked at."""
        from datasketch import MinHash

        a, b = MinHash(num_perm, seed=seed, scheme="affine32").permutations
        self._a, self._b = a[:wanted, None], b[:wanted, None]

    def of(self, codes: Sequence[Sequence[int]]) -> npt.NDArray[np.uint32]:
        """uint32 [texts, wanted] of the shingles' 32-bit codes."""
        sizes = np.array(list(map(len, codes)))
        found = np.full((len(codes), len(self._a)), 0xFFFFFFFF, dtype=np.uint32)
        some = np.flatnonzero(sizes)
        if not len(some):
            return found
        mixed = _mixed(np.fromiter(chain.from_iterable(codes), np.uint32, int(sizes.sum())))
        starts = (np.cumsum(sizes) - sizes)[some]
        for at, (a, b) in enumerate(zip(self._a, self._b, strict=True)):
            found[some, at] = np.minimum.reduceat(a * mixed + b, starts)
        return found


def _mixed(codes: npt.NDArray[np.uint32]) -> npt.NDArray[np.uint32]:
    """MurmurHash3's finalizer."""
    codes = (codes ^ (codes >> np.uint32(16))) * np.uint32(0x85EBCA6B)
    codes = (codes ^ (codes >> np.uint32(13))) * np.uint32(0xC2B2AE35)
    return codes ^ (codes >> np.uint32(16))


def _bands(threshold: float, num_perm: int) -> tuple[int, int]:
    """Bands and rows of the hash table: the most rows (the fewest false candidates) with which a
    pair of ``threshold`` similarity is missed with a chance of at most ``_MISS``."""
    for rows in range(num_perm // 2, 1, -1):
        bands = num_perm // rows
        if (1 - threshold**rows) ** bands <= _MISS:
            return bands, rows
    return num_perm, 1
