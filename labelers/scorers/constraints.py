"""Ready-made checkable constraints: pure functions that say whether a text obeys an instruction.

A constraint is a JSON object with a ``type`` and that type's parameters::

    {"type": "includes_word", "word": "lantern"}
    {"type": "sentence_count", "exact": 1}
    {"type": "ends_with", "text": "!"}

:func:`check` answers one, :func:`satisfied` a list, :func:`score` the share that is met. The types
cover the kinds of instruction that IFEval made usual (keywords, lengths, formats, case,
punctuation, start and end) and are listed by :func:`constraint_types`. A type of one's own is a
function with keyword parameters::

    @constraint("mentions_price")
    def mentions_price(text: str, *, currency: str = "$") -> bool:
        return currency in text

Types that count take ``exact``, or ``min`` and/or ``max`` (both inclusive). A type that forbids
something (``no_comma``, ``excludes_word``) is met by an empty text: where empty answers can occur,
add a lower bound such as ``{"type": "word_count", "min": 1}``.

Nothing here executes or evaluates a text.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

from prefloop.labelers.scorers.check_types import CheckTypes, ConstraintError
from prefloop.labelers.scorers.regex_search import PatternError, RegexSearch

MAX_REGEX_PATTERN = 500
"""Longest pattern, in characters, that the ``regex`` type takes."""
MAX_REGEX_TEXT = 20_000
"""The ``regex`` type looks at this many leading characters of a text and no further."""

_SEARCH = RegexSearch()

_TYPES = CheckTypes("constraint type")

constraint = _TYPES.register
"""Register the decorated function as the constraint type of this name; see ``CheckTypes``."""


def constraint_types() -> dict[str, dict[str, str]]:
    """Every registered type with its parameters, e.g. ``{"includes_word": {"word": "str"}}``.

    A parameter that may be left out has a question mark: ``"int?"``.
    """
    return _TYPES.described()


def check(constraint: Mapping[str, Any], text: str) -> bool:
    """Whether ``text`` meets ``constraint``.

    Raises :class:`ConstraintError` for a constraint that cannot be checked.
    """
    if not isinstance(constraint, Mapping) or not isinstance(constraint.get("type"), str):
        raise ConstraintError(f"a constraint is an object with a string 'type', got {constraint!r}")
    arguments = {key: value for key, value in constraint.items() if key != "type"}
    return _TYPES.check(constraint["type"], arguments, text)


def satisfied(constraints: Sequence[Mapping[str, Any]], text: str) -> list[bool]:
    """For each constraint, in order, whether ``text`` meets it."""
    return [check(item, text) for item in constraints]


def score(constraints: Sequence[Mapping[str, Any]], text: str) -> float:
    """The share of ``constraints`` that ``text`` meets, in [0, 1]; 1.0 where there are none."""
    met = satisfied(constraints, text)
    return sum(met) / len(met) if met else 1.0


def validate(constraint: Mapping[str, Any]) -> None:
    """Raise :class:`ConstraintError` if ``constraint`` cannot be checked; look at no text."""
    check(constraint, "")


# Counting ---------------------------------------------------------------------------------------

_WORD = re.compile(r"\w+(?:['\u2019-]\w+)*")
_BULLET = re.compile(r"^[ \t]*[-*\u2022+][ \t]+\S", re.MULTILINE)
_BLANK_LINE = re.compile(r"\n[ \t]*\n+")
_SENTENCE_END = re.compile(r"[.!?\u2026]+[\"'\u201d\u2019)\]*]*(?=\s|$)")
_ABBREVIATION = re.compile(r"(?:\b(?:Mr|Mrs|Ms|Dr|Prof|St|vs|e\.g|i\.e|P\.S|\w\.\w))\.$")


def count_words(text: str) -> int:
    """Number of words; ``well-known`` and ``isn't`` are one word each."""
    return len(_WORD.findall(text))


def count_sentences(text: str) -> int:
    """Number of sentences.

    A sentence ends with ``.``, ``!``, ``?`` or an ellipsis before white space or the end, or with
    its paragraph. Decimals and common abbreviations do not end one.
    """
    total = 0
    for paragraph in _paragraphs(text):
        start = 0
        for end in _SENTENCE_END.finditer(paragraph):
            if _ABBREVIATION.search(paragraph[start : end.end()]) and end.end() < len(paragraph):
                continue
            total += bool(_WORD.search(paragraph[start : end.end()]))
            start = end.end()
        total += bool(_WORD.search(paragraph[start:]))
    return total


def _paragraphs(text: str) -> list[str]:
    return [part for part in _BLANK_LINE.split(text.strip()) if part.strip()]


def _within(count: int, exact: int | None, low: int | None, high: int | None) -> bool:
    """Whether ``count`` is what a counting constraint asks for; refuse bounds that say nothing."""
    if exact is None and low is None and high is None:
        raise ConstraintError("a counting constraint needs 'exact', 'min' or 'max'")
    if exact is not None and (low is not None or high is not None):
        raise ConstraintError("'exact' excludes 'min' and 'max'")
    if low is not None and high is not None and low > high:
        raise ConstraintError(f"'min' {low} is greater than 'max' {high}")
    if any(bound is not None and bound < 0 for bound in (exact, low, high)):
        raise ConstraintError("counts cannot be negative")
    if exact is not None:
        return count == exact
    return (low is None or count >= low) and (high is None or count <= high)


@lru_cache(maxsize=4096)
def _word_pattern(word: str) -> re.Pattern[str]:
    if not word.strip():
        raise ConstraintError("'word' is empty")
    # Not \b: a word may begin or end with a character that is no word character ("C++").
    return re.compile(rf"(?<!\w){re.escape(word.strip())}(?!\w)", re.IGNORECASE)


def _occurrences(text: str, word: str) -> int:
    return len(_word_pattern(word).findall(text))


# Keywords ---------------------------------------------------------------------------------------


@constraint("includes_word")
def includes_word(text: str, *, word: str) -> bool:
    """The text has this word or phrase, as a whole word, in any case."""
    return _occurrences(text, word) > 0


@constraint("excludes_word")
def excludes_word(text: str, *, word: str) -> bool:
    """The text does not have this word or phrase as a whole word, in any case."""
    return _occurrences(text, word) == 0


@constraint("includes_words")
def includes_words(text: str, *, words: list[str]) -> bool:
    """The text has every one of these words."""
    return all(_occurrences(text, word) > 0 for word in words)


@constraint("excludes_words")
def excludes_words(text: str, *, words: list[str]) -> bool:
    """The text has none of these words."""
    return all(_occurrences(text, word) == 0 for word in words)


@constraint("word_frequency")
def word_frequency(
    text: str,
    *,
    word: str,
    exact: int | None = None,
    min: int | None = None,
    max: int | None = None,
) -> bool:
    """The word occurs this many times."""
    return _within(_occurrences(text, word), exact, min, max)


@constraint("letter_frequency")
def letter_frequency(
    text: str,
    *,
    letter: str,
    exact: int | None = None,
    min: int | None = None,
    max: int | None = None,
) -> bool:
    """The single character ``letter`` occurs this many times, in either case."""
    if len(letter) != 1:
        raise ConstraintError(f"'letter' must be one character, got {letter!r}")
    return _within(text.lower().count(letter.lower()), exact, min, max)


@constraint("regex")
def regex(text: str, *, pattern: str) -> bool:
    """The pattern is found somewhere in the first ``MAX_REGEX_TEXT`` characters.

    A pattern that repeats a repetition, like ``(a+)+``, can take forever on a short text and is
    refused; any other has a limited time, see ``prefloop.labelers.scorers.regex_search``.
    """
    _check_pattern(pattern)
    try:
        return _SEARCH.found(pattern, text[:MAX_REGEX_TEXT])
    except PatternError as error:
        raise ConstraintError(f"'pattern' {pattern!r} {error}") from None


def _check_pattern(pattern: str) -> None:
    if len(pattern) > MAX_REGEX_PATTERN:
        raise ConstraintError(f"'pattern' is longer than {MAX_REGEX_PATTERN} characters")
    plain = re.sub(r"\\.|\[\^?\]?(?:\\.|[^\]])*\]", "x", pattern)  # no escapes, no classes
    if _repeats_a_repetition(plain):
        raise ConstraintError(f"'pattern' {pattern!r} repeats a group that itself repeats")


def _repeats_a_repetition(plain: str) -> bool:
    """Whether a group that has an unbounded repeat or an alternative is repeated without bound."""
    unbounded = re.compile(r"[*+]|\{\d*,\}")
    open_groups: list[bool] = []
    for index, character in enumerate(plain):
        if character == "(":
            open_groups.append(False)
        elif character == ")" and open_groups:
            risky = open_groups.pop()
            repeated = unbounded.match(plain, index + 1) is not None
            if risky and repeated:
                return True
            if open_groups:
                open_groups[-1] = open_groups[-1] or risky or repeated
        elif open_groups and (character == "|" or unbounded.match(plain, index)):
            open_groups[-1] = True
    return False


# Start and end ----------------------------------------------------------------------------------


@constraint("starts_with")
def starts_with(text: str, *, prefix: str, ignore_case: bool = False) -> bool:
    """The text, without surrounding white space, begins with ``prefix``.

    Where the prefix ends in a letter or digit, a whole word has to end there too.
    """
    body, start = _folded(text.strip(), prefix, ignore_case)
    cut = start[-1].isalnum() and body[len(start) : len(start) + 1].isalnum()
    return body.startswith(start) and not cut


@constraint("ends_with")
def ends_with(text: str, *, suffix: str, ignore_case: bool = False) -> bool:
    """The text, without surrounding white space, ends with ``suffix``."""
    body, end = _folded(text.strip(), suffix, ignore_case)
    cut = end[0].isalnum() and body[: -len(end)][-1:].isalnum()
    return body.endswith(end) and not cut


def _folded(text: str, part: str, ignore_case: bool) -> tuple[str, str]:
    part = part.strip()
    if not part:
        raise ConstraintError("the text to start or end with is empty")
    return (text.casefold(), part.casefold()) if ignore_case else (text, part)


@constraint("question")
def question(text: str) -> bool:
    """The text ends with a question mark."""
    return text.rstrip().endswith("?")


@constraint("quoted")
def quoted(text: str) -> bool:
    """The whole text is wrapped in double quotation marks."""
    body = text.strip()
    return len(body) > 2 and body[0] in '"\u201c' and body[-1] in '"\u201d'


@constraint("postscript")
def postscript(text: str, *, marker: str = "P.S.") -> bool:
    """A line begins with ``marker`` and goes on after it."""
    lines = (line.strip() for line in text.splitlines())
    return any(line.startswith(marker) and len(line) > len(marker) for line in lines)


@constraint("paragraph_starts_with")
def paragraph_starts_with(text: str, *, paragraph: int, prefix: str) -> bool:
    """Paragraph number ``paragraph`` (from 1) begins with ``prefix``, in any case."""
    if paragraph < 1:
        raise ConstraintError("'paragraph' counts from 1")
    parts = _paragraphs(text)
    return paragraph <= len(parts) and starts_with(
        parts[paragraph - 1], prefix=prefix, ignore_case=True
    )


# Length -----------------------------------------------------------------------------------------


@constraint("word_count")
def word_count(
    text: str, *, exact: int | None = None, min: int | None = None, max: int | None = None
) -> bool:
    """The text has this many words."""
    return _within(count_words(text), exact, min, max)


@constraint("char_count")
def char_count(
    text: str, *, exact: int | None = None, min: int | None = None, max: int | None = None
) -> bool:
    """The text has this many characters, surrounding white space not counted."""
    return _within(len(text.strip()), exact, min, max)


@constraint("sentence_count")
def sentence_count(
    text: str, *, exact: int | None = None, min: int | None = None, max: int | None = None
) -> bool:
    """The text has this many sentences (see :func:`count_sentences`)."""
    return _within(count_sentences(text), exact, min, max)


@constraint("paragraph_count")
def paragraph_count(
    text: str, *, exact: int | None = None, min: int | None = None, max: int | None = None
) -> bool:
    """The text has this many paragraphs, separated by blank lines."""
    return _within(len(_paragraphs(text)), exact, min, max)


@constraint("bullet_count")
def bullet_count(
    text: str, *, exact: int | None = None, min: int | None = None, max: int | None = None
) -> bool:
    """The text has this many bullet points: lines that begin with ``-``, ``*``, ``+`` or a dot."""
    return _within(len(_BULLET.findall(text)), exact, min, max)


# Format -----------------------------------------------------------------------------------------

_HIGHLIGHT = re.compile(r"(?<!\*)(\*{1,2})(?!\s|\*)[^*\n]*[^*\s]\1(?!\*)")
_PLACEHOLDER = re.compile(r"\[[^\[\]\n]+\]")
_TITLE = re.compile(r"<<[ \t]*[^<>\n]*\w[^<>\n]*>>")


@constraint("contains_number")
def contains_number(text: str) -> bool:
    """The text has at least one digit."""
    return any(character.isdigit() for character in text)


@constraint("no_comma")
def no_comma(text: str) -> bool:
    """The text has no comma."""
    return "," not in text


@constraint("highlighted")
def highlighted(text: str, *, min: int = 1) -> bool:
    """At least ``min`` passages are highlighted in Markdown: ``*so*`` or ``**so**``."""
    return len(_HIGHLIGHT.findall(text)) >= min


@constraint("placeholder_count")
def placeholder_count(
    text: str, *, exact: int | None = None, min: int | None = None, max: int | None = None
) -> bool:
    """The text has this many placeholders in square brackets, like ``[name]``."""
    return _within(len(_PLACEHOLDER.findall(text)), exact, min, max)


@constraint("title_in_double_angle_brackets")
def title_in_double_angle_brackets(text: str) -> bool:
    """The text has a title in double angle brackets: ``<<A title>>``."""
    return _TITLE.search(text) is not None


@constraint("section_count")
def section_count(
    text: str,
    *,
    marker: str = "Section",
    exact: int | None = None,
    min: int | None = None,
    max: int | None = None,
) -> bool:
    """This many lines begin with ``marker`` and a number, like ``Section 2``."""
    pattern = re.compile(rf"^[#*\s]*{re.escape(marker)}\s+\d+", re.MULTILINE | re.IGNORECASE)
    return _within(len(pattern.findall(text)), exact, min, max)


@constraint("separated_parts")
def separated_parts(text: str, *, separator: str = "******", count: int = 2) -> bool:
    """``separator`` divides the text into ``count`` different parts, none of them empty."""
    if not separator:
        raise ConstraintError("'separator' is empty")
    parts = [part.strip() for part in text.strip().split(separator)]
    return len(parts) == count and all(parts) and len(set(parts)) == count


@constraint("one_of")
def one_of(text: str, *, options: list[str]) -> bool:
    """The whole text is one of ``options``, in any case."""
    return text.strip().casefold() in {option.strip().casefold() for option in options}


@constraint("json_object")
def json_object(text: str, *, keys: list[str] | None = None) -> bool:
    """The text, or its one fenced code block, is a JSON object that has all of ``keys``."""
    body = text.strip()
    fenced = re.fullmatch(r"```(?:json)?\s*\n(.*)\n?```", body, re.DOTALL | re.IGNORECASE)
    try:
        value = json.loads(fenced.group(1) if fenced else body)
    except (ValueError, RecursionError):
        return False
    return isinstance(value, dict) and all(key in value for key in keys or [])


# Case -------------------------------------------------------------------------------------------


@constraint("all_lowercase")
def all_lowercase(text: str) -> bool:
    """The text has letters and none of them is a capital."""
    return text.islower()


@constraint("all_uppercase")
def all_uppercase(text: str) -> bool:
    """The text has letters and all of them are capitals."""
    return text.isupper()


@constraint("capital_word_count")
def capital_word_count(
    text: str, *, exact: int | None = None, min: int | None = None, max: int | None = None
) -> bool:
    """This many words are written in capitals only."""
    return _within(sum(word.isupper() for word in _WORD.findall(text)), exact, min, max)
