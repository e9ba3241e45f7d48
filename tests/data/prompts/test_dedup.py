"""Near-duplicates and overlaps, against what a full comparison of all pairs says."""

import random
import time
from zlib import crc32

import pytest
from datasketch import MinHash
from hypothesis import example, given, settings
from hypothesis import strategies as st

from prefloop.data.config import NearDuplicates
from prefloop.data.prompts.dedup import (
    _MinHashes,
    _shingle_codes,
    jaccard,
    near_duplicates,
    normalise,
    overlaps,
    shingles,
)

CONFIG = NearDuplicates()
WORDS = [
    "a",
    "fox",
    "ran",
    "over",
    "the",
    "old",
    "stone",
    "bridge",
    "while",
    "seven",
    "small",
    "lanterns",
    "swung",
    "in",
    "rain",
]
POEM = " ".join(WORDS)

texts = st.lists(
    st.lists(st.sampled_from(WORDS[:6]), min_size=1, max_size=9).map(" ".join), max_size=25
)


def by_comparing_all(
    found: list[str], config: NearDuplicates, groups: list[str | None] | None = None
) -> list[int | None]:
    sets = [shingles(normalise(text), config.ngram) for text in found]
    hits: list[int | None] = []
    for i, own in enumerate(sets):
        earlier = (
            j
            for j in range(i)
            if hits[j] is None
            and (groups is None or groups[i] == groups[j])
            and jaccard(own, sets[j]) >= config.threshold - 1e-9
        )
        hits.append(next(earlier, None))
    return hits


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("  Hello \t\n WORLD ", "hello world"),
        ("ﬁne ①", "fine 1"),
        ("Straße", "strasse"),
        ("Ｆｕｌｌ　ｗｉｄｔｈ", "full width"),
        ("cafe\u0301", "café"),
        ("", ""),
    ],
)
def test_normalise(text: str, normal: str) -> None:
    assert normalise(text) == normal


@given(st.text())
@example("\u00a8")  # in its normal form a space and a mark
@example("\u037a")  # the same, and folds to a letter
def test_normalise_has_no_outer_or_double_space_and_ignores_case(text: str) -> None:
    normal = normalise(text)
    assert normal == " ".join(normal.split())
    assert normalise(f"\n{text}  ") == normal


def test_shingles_are_runs_of_words_and_marks() -> None:
    assert shingles("what is 2+2?", 3) == {"what is 2", "is 2 +", "2 + 2", "+ 2 ?"}
    assert shingles("go on", 3) == {"go ", "o o", " on"}
    assert shingles("hi", 3) == {"hi"}
    assert shingles("", 3) == frozenset()
    assert shingles("今日は", 2) == {"今 日", "日 は"}


def test_one_changed_word_in_a_long_text_is_near_and_another_text_is_not() -> None:
    long = " ".join(f"word{i}" for i in range(40))
    changed = long.replace("word20", "other")
    assert near_duplicates([long, POEM, changed], CONFIG, seed=0) == [None, None, 0]


def test_operators_and_numbers_make_short_questions_differ() -> None:
    questions = ["What is 12 + 35?", "What is 12 - 35?", "What is 12 + 36?", "what is 12+35?"]
    assert near_duplicates(questions, CONFIG, seed=0) == [None, None, None, 0]


def test_a_chain_is_compared_with_what_was_kept() -> None:
    words = [f"w{i}" for i in range(30)]
    chain = [" ".join(words[i : i + 24]) for i in range(0, 6, 2)]
    sets = [shingles(text, 3) for text in chain]
    config = NearDuplicates(threshold=jaccard(sets[0], sets[1]))
    assert jaccard(sets[0], sets[2]) < config.threshold
    assert near_duplicates(chain, config, seed=0) == [None, 0, None]
    assert near_duplicates([*chain, chain[1]], config, seed=0) == [None, 0, None, 0]


@settings(max_examples=60, deadline=None)
@given(texts, st.sampled_from([0.3, 0.5, 0.8, 1.0]), st.integers(0, 3))
# A text that equals a duplicate is a duplicate of what that one repeats.
@example(["a fox ran over", "a fox ran over the", "a fox ran over the"], 0.3, 0)
def test_near_duplicates_are_real_and_what_is_kept_has_none(
    found: list[str], threshold: float, seed: int
) -> None:
    config = NearDuplicates(threshold=threshold)
    hits = near_duplicates(found, config, seed=seed)
    sets = [shingles(normalise(text), config.ngram) for text in found]
    for i, hit in enumerate(hits):
        if hit is not None:
            assert hit < i
            assert hits[hit] is None
            assert jaccard(sets[i], sets[hit]) >= threshold - 1e-9
    assert hits == near_duplicates(found, config, seed=seed)


def test_minhash_finds_what_comparing_all_pairs_finds() -> None:
    noise = random.Random(7)
    vocabulary = [f"w{i}" for i in range(500)]
    found = []
    for _ in range(150):
        base = noise.choices(vocabulary, k=40)
        found.append(" ".join(base))
        for changes in (1, 2, 3):
            copy = list(base)
            for place in noise.sample(range(40), changes):
                copy[place] = noise.choice(vocabulary)
            found.append(" ".join(copy))
    wanted = by_comparing_all(found, CONFIG)
    for seed in range(3):
        hits = near_duplicates(found, CONFIG, seed=seed)
        differing = sum(a != b for a, b in zip(hits, wanted, strict=True))
        assert differing <= 3, "0.5% of pairs right at the threshold may be missed"
    assert sum(hit is not None for hit in wanted) > 150


def test_only_texts_of_one_group_are_compared() -> None:
    hits = near_duplicates(
        [POEM, POEM, POEM + " again", POEM], CONFIG, seed=0, groups=[None, "x", "x", None]
    )
    assert hits == [None, None, 1, 0]


def test_no_texts_and_no_references() -> None:
    assert near_duplicates([], CONFIG, seed=0) == []
    assert near_duplicates(["one"], CONFIG, seed=0) == [None]
    assert overlaps([POEM], [], threshold=0.8, ngram=3) == [None]
    assert overlaps([], [POEM], threshold=0.8, ngram=3) == []


def test_a_long_reference_inside_a_longer_text_overlaps_and_a_short_one_does_not() -> None:
    around = "Here is a task for you, please do it with care. {} Explain each of your choices."
    references = ["the old stone bridge", POEM]
    hits = overlaps(
        [around.format(POEM.upper()), around.format(references[0]), "The old stone  bridge"],
        references,
        threshold=0.8,
        ngram=3,
    )
    assert hits == [1, None, 0]


@settings(max_examples=60, deadline=None)
@given(texts, texts, st.sampled_from([0.3, 0.8, 1.0]))
# The text lacks the rarest of the reference's shingles.
@example(["fox ran over the old"], ["a fox ran over the old"], 0.8)
# The shortest reference that counts where a text contains it.
@example(["a a fox fox a over a"], ["a a the a ran ran a fox a"], 0.3)
def test_overlaps_are_those_that_comparing_all_pairs_finds(
    found: list[str], references: list[str], threshold: float
) -> None:
    def overlap(text: str, reference: str) -> bool:
        own, other = shingles(text, 2), shingles(reference, 2)
        contained = len(other) >= 8 and len(own & other) >= threshold * len(other) - 1e-9
        return contained or jaccard(own, other) >= threshold - 1e-9

    wanted = [
        next((i for i, reference in enumerate(references) if overlap(text, reference)), None)
        for text in found
    ]
    assert overlaps(found, references, threshold=threshold, ngram=2) == wanted


def test_marks_upon_one_letter_are_sorted_in_linear_time() -> None:
    begun = time.perf_counter()
    marks = "\u0301\u0316" * 500_000
    assert len(normalise(f"a{marks}")) >= len(marks)
    # All of them sorted at once would take hours.
    assert time.perf_counter() - begun < 30
    assert normalise("a\u0301\u0316") == normalise("a\u0316\u0301") == "\xe1\u0316".casefold()
    assert normalise("a" + "\u0301" * 40) == normalise("A" + "\u0301" * 40)


def test_hashes_of_many_texts_are_those_that_datasketch_gives_for_each():
    draw = random.Random(1)
    words = ["foo", "bär", "x,y", "b-c", "今日は", "A", "q"]
    texts = [normalise(" ".join(draw.choices(words, k=k % 12))) for k in range(200)]
    found = _MinHashes(128, 77, 120).of([_shingle_codes(text, 3) for text in texts])
    for text, row in zip(texts, found, strict=True):
        alone = MinHash(128, seed=77, hashfunc=crc32)
        alone.update_batch([shingle.encode() for shingle in shingles(text, 3)])
        assert (alone.hashvalues[:120] == row).all()
