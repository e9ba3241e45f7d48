"""Every constraint type both ways, the errors, and what counts as a word or a sentence."""

from __future__ import annotations

import time
from typing import Any

import pytest

from prefloop.labelers.scorers.check_types import ConstraintError
from prefloop.labelers.scorers.constraints import (
    MAX_REGEX_TEXT,
    check,
    constraint,
    constraint_types,
    count_sentences,
    count_words,
    satisfied,
    score,
    validate,
)

CASES: list[tuple[dict[str, Any], str, str]] = [
    # constraint, a text that meets it, a text that does not
    ({"type": "includes_word", "word": "lantern"}, "A Lantern!", "Two lanterns."),
    ({"type": "includes_word", "word": "ice cream"}, "More ice cream.", "More ice."),
    ({"type": "includes_word", "word": "C++"}, "I write C++.", "I write C."),
    ({"type": "includes_word", "word": "fox"}, "The *fox* ran.", "The foxglove."),
    ({"type": "excludes_word", "word": "art"}, "A party.", "Fine ART."),
    ({"type": "includes_words", "words": ["a", "b"]}, "b a", "b"),
    ({"type": "excludes_words", "words": ["a", "b"]}, "c", "b"),
    ({"type": "word_frequency", "word": "no", "exact": 2}, "No, no.", "No."),
    ({"type": "word_frequency", "word": "no", "max": 1}, "No.", "No, no."),
    ({"type": "letter_frequency", "letter": "a", "min": 2}, "Aha", "Oha"),
    ({"type": "regex", "pattern": r"\b\d{3}\b"}, "Room 101.", "Room 11."),
    ({"type": "starts_with", "prefix": "Dear"}, " Dear baker,", "Dearest baker,"),
    ({"type": "starts_with", "prefix": "Dear"}, "Dear baker", "dear baker"),
    ({"type": "starts_with", "prefix": "dear", "ignore_case": True}, "DEAR", "Hi dear"),
    ({"type": "ends_with", "suffix": "!"}, "Stop!\n", "Stop."),
    ({"type": "ends_with", "suffix": "end."}, "The end.", "The legend."),
    ({"type": "ends_with", "suffix": "THE END", "ignore_case": True}, "the end", "an end"),
    ({"type": "question"}, "Why? ", "Why? Because."),
    ({"type": "quoted"}, '"All of it."', '"Some" of it.'),
    ({"type": "quoted"}, "\u201cAll\u201d", "All"),
    ({"type": "postscript"}, "Bye.\nP.S. I lied.", "Bye. P.S. I lied."),
    ({"type": "postscript", "marker": "P.P.S"}, "P.P.S No.", "P.S. No."),
    ({"type": "paragraph_starts_with", "paragraph": 2, "prefix": "so"}, "A\n\nSo b", "So a\n\nb"),
    ({"type": "paragraph_starts_with", "paragraph": 2, "prefix": "so"}, "A\n\nSo b", "So a"),
    ({"type": "word_count", "min": 2}, "one two", "one"),
    ({"type": "word_count", "max": 2}, "one two", "one two three"),
    ({"type": "word_count", "exact": 2}, "it's well-known", "it is known"),
    ({"type": "char_count", "max": 3}, " abc ", "abcd"),
    ({"type": "sentence_count", "exact": 1}, "One. ", "One. Two."),
    ({"type": "sentence_count", "min": 2, "max": 3}, "A. B!", "A. B! C? D"),
    ({"type": "paragraph_count", "exact": 2}, "a\n \n\nb", "a\nb"),
    ({"type": "bullet_count", "exact": 2}, "- a\n  * b", "- a\n-b"),
    ({"type": "contains_number"}, "7 bells", "seven bells"),
    ({"type": "no_comma"}, "a; b", "a, b"),
    ({"type": "highlighted"}, "a *b* c", "2 * 3 * 4"),
    ({"type": "highlighted", "min": 2}, "*a* and **b c**", "*a* and *b"),
    ({"type": "placeholder_count", "min": 1}, "Hi [name]", "Hi name"),
    ({"type": "title_in_double_angle_brackets"}, "<<A title>>\ntext", "<A title>"),
    ({"type": "section_count", "exact": 2}, "Section 1\na\n## section 2\nb", "Section 1"),
    ({"type": "separated_parts"}, "a\n******\nb", "a\n******\na"),
    ({"type": "one_of", "options": ["Yes.", "No."]}, " yes. ", "Yes"),
    ({"type": "json_object"}, '{"a": 1}', "[1]"),
    ({"type": "json_object"}, '```json\n{"a": 1}\n```', "{a: 1}"),
    ({"type": "json_object", "keys": ["a"]}, '{"a": 1}', '{"b": 1}'),
    ({"type": "all_lowercase"}, "a fox, 3", "A fox"),
    ({"type": "all_lowercase"}, "fox", "123"),
    ({"type": "all_uppercase"}, "A FOX!", "A fox"),
    ({"type": "capital_word_count", "min": 2}, "THE END", "The END"),
]


@pytest.mark.parametrize(("item", "good", "bad"), CASES, ids=lambda value: str(value)[:40])
def test_both_ways(item: dict[str, Any], good: str, bad: str) -> None:
    validate(item)
    assert check(item, good)
    assert not check(item, bad)


def test_every_type_is_in_the_table() -> None:
    assert {item["type"] for item, _, _ in CASES} == set(constraint_types())


@pytest.mark.parametrize(
    ("item", "message"),
    [
        ({"type": "include_word", "word": "a"}, "did you mean 'includes_word'"),
        ({"type": "zzz"}, "known: all_lowercase"),
        ({"word": "a"}, "string 'type'"),
        ("no_comma", "string 'type'"),
        ({"type": "includes_word"}, "'word' is missing"),
        ({"type": "includes_word", "wrod": "a"}, "did you mean 'word'"),
        ({"type": "no_comma", "word": "a"}, "it takes none"),
        ({"type": "includes_word", "word": 3}, "must be a string"),
        ({"type": "includes_word", "word": "  "}, "empty"),
        ({"type": "includes_words", "words": ["a", 1]}, "list of strings"),
        ({"type": "word_count"}, "needs 'exact', 'min' or 'max'"),
        ({"type": "word_count", "min": True}, "must be a whole number"),
        ({"type": "word_count", "min": 3, "max": 2}, "greater"),
        ({"type": "word_count", "exact": 3, "max": 2}, "excludes"),
        ({"type": "word_count", "min": -1}, "negative"),
        ({"type": "letter_frequency", "letter": "ab", "min": 1}, "one character"),
        ({"type": "regex", "pattern": "("}, "not a regular expression"),
        ({"type": "regex", "pattern": "(a+)+$"}, "repeats"),
        ({"type": "regex", "pattern": "((a|b)c)*"}, "repeats"),
        ({"type": "regex", "pattern": "a" * 501}, "longer than"),
        ({"type": "starts_with", "prefix": " "}, "empty"),
        ({"type": "paragraph_starts_with", "paragraph": 0, "prefix": "a"}, "counts from 1"),
    ],
)
def test_errors_say_what_is_wrong(item: Any, message: str) -> None:
    with pytest.raises(ConstraintError) as error:
        check(item, "text")
    assert message in str(error.value)


def test_score_is_the_share_met() -> None:
    items = [{"type": "no_comma"}, {"type": "question"}, {"type": "contains_number"}]
    assert satisfied(items, "Why 3") == [True, False, True]
    assert score(items, "Why 3") == pytest.approx(2 / 3)
    assert score([], "anything") == 1.0


def test_null_parameters_are_absent() -> None:
    """Rows that went through Arrow have every field of every type."""
    assert check({"type": "word_count", "exact": None, "min": 1, "max": None}, "a b")


def test_regex_looks_at_a_bounded_text() -> None:
    started = time.perf_counter()
    assert not check({"type": "regex", "pattern": "b"}, "a" * MAX_REGEX_TEXT + "b")
    assert check({"type": "regex", "pattern": r"[(+*]+x"}, "((+x")
    assert time.perf_counter() - started < 1


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("", 0),
        ("...", 0),
        ("Dr. Fox ran 3.5 miles. Really?!", 2),
        ("Without a full stop", 1),
        ('He said "Stop." Then he left.', 2),
        ("A title\n\nA sentence.", 2),
        ("Eins. Zwei\u2026 Drei", 3),
    ],
)
def test_sentences(text: str, count: int) -> None:
    assert count_sentences(text) == count


def test_words_in_any_script() -> None:
    assert count_words("Der Fu\u00df, d\u2019accord \u2014 \u043e\u0434\u0438\u043d 2") == 5


def test_a_type_of_ones_own() -> None:
    name = "mentions_price_test"

    @constraint(name)
    def mentions_price(text: str, *, currency: str = "$") -> bool:
        return currency in text

    assert check({"type": name}, "3 $")
    assert constraint_types()[name] == {"currency": "str?"}
    with pytest.raises(ValueError, match="already registered"):
        constraint(name)(mentions_price)
    with pytest.raises(ValueError, match="unsupported annotation"):

        @constraint("unsupported_test")
        def unsupported(text: str, *, value: float) -> bool:
            return False


@pytest.fixture(autouse=True)
def _registry_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    import prefloop.labelers.scorers.constraints as module

    monkeypatch.setattr(module._TYPES, "_types", dict(module._TYPES._types))
