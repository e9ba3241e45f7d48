"""Near-duplicates: found by MinHash, decided by the real Jaccard similarity."""

import random

from hypothesis import given
from hypothesis import strategies as st

from data.config import NearDuplicates
from data.dedup import near_duplicates, normalise, overlaps, shingles

CONFIG = NearDuplicates(threshold=0.8)


def test_shingles_of_words_and_of_short_texts() -> None:
    assert shingles("The  quick brown\nFOX", 3) == {"the quick brown", "quick brown fox"}
    assert shingles("Hi there", 3) == {"hi th", "i the", " ther", "there"}
    assert shingles("", 3) == {""}


@given(st.text())
def test_normalising_twice_is_normalising_once_up_to_unicode_folding(text: str) -> None:
    assert " ".join(normalise(text).split(" ")) == normalise(text)
    assert normalise(f"  {text}\n") == normalise(text)


def test_the_threshold_is_the_real_jaccard_similarity() -> None:
    # 20 words have 18 shingles of 3; changing the last word changes one of them, so 17 are
    # shared of 19 in all: 0.894. Changing the middle word changes three: 15 of 21, 0.714.
    words = [f"w{i}" for i in range(20)]
    last, middle = [*words[:-1], "x"], [*words[:10], "x", *words[11:]]
    texts = [" ".join(words), " ".join(last), " ".join(middle)]
    assert near_duplicates(texts, CONFIG, seed=0) == [None, 0, None]
    loose = NearDuplicates(threshold=0.7)
    assert near_duplicates(texts, loose, seed=0) == [None, 0, 0]


def test_no_chain_of_small_changes_drops_what_is_far_from_every_kept_text() -> None:
    words = [f"w{i}" for i in range(30)]
    chain = [" ".join(["x"] * i + words[i:]) for i in range(0, 30, 2)]
    found = near_duplicates(chain, CONFIG, seed=1)
    kept = {i for i, match in enumerate(found) if match is None}
    assert all(match in kept for match in found if match is not None)
    assert len(kept) > 1


def test_overlaps_point_at_the_other_text() -> None:
    others = ["one two three four five six", "seven eight nine ten eleven twelve"]
    assert overlaps(["Seven eight nine ten eleven twelve", "new text entirely here"], others,
                    CONFIG, seed=0) == [1, None]  # fmt: skip


def test_hardly_a_duplicate_is_missed_among_many_texts() -> None:
    generator = random.Random(0)
    vocabulary = [f"word{i}" for i in range(500)]
    texts = [" ".join(generator.choices(vocabulary, k=40)) for _ in range(300)]
    changed = [text.replace(text.split()[-1], "other") for text in texts]
    found = overlaps(changed, texts, CONFIG, seed=0)
    assert sum(match == i for i, match in enumerate(found)) >= 297
