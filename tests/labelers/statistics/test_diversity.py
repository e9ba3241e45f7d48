"""Variety of answers, by hand."""

from __future__ import annotations

import pytest

from prefloop.labelers.statistics.diversity import distinct_n, is_repetitive, repetitive_share


def test_distinct_by_hand() -> None:
    # Words a b a c and A b: six unigrams, three different; bigrams ab ba ac ab: four, three.
    answers = ["a b a c", "A b"]
    assert distinct_n(answers, 1) == pytest.approx(3 / 6)
    assert distinct_n(answers, 2) == pytest.approx(3 / 4)
    assert distinct_n(["a", ""], 2) is None
    assert distinct_n([], 1) is None


def test_repetition() -> None:
    assert not is_repetitive("one two three four " * 2)
    assert is_repetitive("one two three four " * 3)
    assert is_repetitive("So it is as it is. so It is as it is. So it is as it is.")
    assert not is_repetitive("")
    assert not is_repetitive("no no no")
    # na na na na na na holds the run of four three times.
    assert is_repetitive("na " * 6)
    assert repetitive_share(["na " * 6, "fine"]) == 0.5
    with pytest.raises(ValueError, match="at least one answer"):
        repetitive_share([])
