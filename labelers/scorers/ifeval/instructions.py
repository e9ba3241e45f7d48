"""The 25 instruction types of IFEval, by their ids and with the arguments that IFEval gives them.

Each says whether an answer that is not blank follows the instruction. Where the official rules are
odd, so are these: they are a measure that others use too. Two things differ. An argument that is
missing or makes no sense is an error here, where the official code draws one at random; and the
language of a text is told from a fixed seed.
"""

from __future__ import annotations

import json
import re
from collections import Counter

from prefloop.labelers.scorers.check_types import CheckTypes, ConstraintError
from prefloop.labelers.scorers.ifeval.counting import capital_words, sentence_count, word_count
from prefloop.labelers.scorers.ifeval.language import is_in, known_languages
from prefloop.labelers.scorers.ifeval.patterns import occurrences

INSTRUCTIONS = CheckTypes("IFEval instruction")
"""The types by their ids, e.g. ``punctuation:no_comma``."""

_instruction = INSTRUCTIONS.register

LESS, AT_LEAST = "less than", "at least"
"""The two relations of a number that is counted to the one that is asked for."""
_ANSWERS = ("My answer is yes.", "My answer is no.", "My answer is maybe.")


def _related(count: int, relation: str, number: int) -> bool:
    if relation not in (LESS, AT_LEAST):
        raise ConstraintError(f"a relation is {LESS!r} or {AT_LEAST!r}, not {relation!r}")
    _require_count(number)
    return count < number if relation == LESS else count >= number


def _require_count(number: int) -> None:
    if number < 0:
        raise ConstraintError(f"a number to count up to is negative: {number}")


# Keywords ---------------------------------------------------------------------------------------


@_instruction("keywords:existence")
def has_keywords(text: str, *, keywords: list[str]) -> bool:
    """Every keyword is somewhere in the text, in any case, as part of a word too."""
    _require_words(keywords)
    # A list: that a later keyword cannot be searched for must not depend on the earlier ones.
    found = [occurrences(keyword, text) for keyword in keywords]
    return all(found)


@_instruction("keywords:frequency")
def keyword_frequency(text: str, *, keyword: str, frequency: int, relation: str) -> bool:
    """The keyword occurs this often, in any case, parts of words counted."""
    return _related(occurrences(keyword.strip(), text), relation, frequency)


@_instruction("keywords:forbidden_words")
def has_no_forbidden_words(text: str, *, forbidden_words: list[str]) -> bool:
    """None of the words is there as a whole word."""
    _require_words(forbidden_words)
    found = [occurrences(word, text, before=r"\b", after=r"\b") for word in forbidden_words]
    return not any(found)


@_instruction("keywords:letter_frequency")
def letter_frequency(text: str, *, letter: str, let_frequency: int, let_relation: str) -> bool:
    """The character occurs this often, in either case."""
    if len(letter) != 1 or letter.isspace():
        raise ConstraintError(f"a letter is one character, not {letter!r}")
    return _related(Counter(text.lower())[letter.lower()], let_relation, let_frequency)


def _require_words(words: list[str]) -> None:
    if not words:
        raise ConstraintError("the list of words is empty")


# Language and case ------------------------------------------------------------------------------


@_instruction("language:response_language")
def response_language(text: str, *, language: str) -> bool:
    """The text is in this language, or in none that can be told."""
    if language not in known_languages():
        known = ", ".join(known_languages())
        raise ConstraintError(f"the language {language!r} cannot be told; those that can: {known}")
    return is_in(text, language) is not False


@_instruction("change_case:english_capital")
def english_capital(text: str) -> bool:
    """The text is English in capitals."""
    return text.isupper() and is_in(text, "en") is not False


@_instruction("change_case:english_lowercase")
def english_lowercase(text: str) -> bool:
    """The text is English without a capital."""
    return text.islower() and is_in(text, "en") is not False


@_instruction("change_case:capital_word_frequency")
def capital_word_frequency(text: str, *, capital_frequency: int, capital_relation: str) -> bool:
    """So many words are in capitals only."""
    return _related(capital_words(text), capital_relation, capital_frequency)


# Length -----------------------------------------------------------------------------------------


@_instruction("length_constraints:number_sentences")
def number_sentences(text: str, *, num_sentences: int, relation: str) -> bool:
    """The text has so many sentences."""
    return _related(sentence_count(text), relation, num_sentences)


@_instruction("length_constraints:number_words")
def number_words(text: str, *, num_words: int, relation: str) -> bool:
    """The text has so many words."""
    return _related(word_count(text), relation, num_words)


@_instruction("length_constraints:number_paragraphs")
def number_paragraphs(text: str, *, num_paragraphs: int) -> bool:
    """``***`` divides the text into exactly so many paragraphs, none of them blank; a divider at
    the beginning or the end does no harm."""
    _require_count(num_paragraphs)
    parts = [bool(part.strip()) for part in re.split(r"\s?\*\*\*\s?", text)]
    return all(parts[1:-1]) and sum(parts) == num_paragraphs


@_instruction("length_constraints:nth_paragraph_first_word")
def nth_paragraph_first_word(
    text: str, *, num_paragraphs: int, nth_paragraph: int, first_word: str
) -> bool:
    """Blank lines divide the text into exactly so many paragraphs, and the one of this number
    (from 1) begins with this word."""
    if not 1 <= nth_paragraph <= num_paragraphs:
        raise ConstraintError(f"there is no paragraph {nth_paragraph} among {num_paragraphs}")
    parts = text.split("\n\n")
    count = sum(bool(part.strip()) for part in parts)
    # Blank parts are not counted as paragraphs, and yet counted over on the way to the nth.
    if count != num_paragraphs or not parts[nth_paragraph - 1].strip():
        return False
    word = parts[nth_paragraph - 1].split()[0].lstrip("'").lstrip('"')
    word = re.split("[.,?!'\"]", word, maxsplit=1)[0]
    return "".join(map(str.lower, word)) == first_word.lower()


# Content ----------------------------------------------------------------------------------------


@_instruction("detectable_content:number_placeholders")
def number_placeholders(text: str, *, num_placeholders: int) -> bool:
    """At least so many placeholders in square brackets, each on one line."""
    _require_count(num_placeholders)
    return len(re.findall(r"\[.*?\]", text)) >= num_placeholders


@_instruction("detectable_content:postscript")
def postscript(text: str, *, postscript_marker: str) -> bool:
    """The marker is somewhere in the text, in any case; after ``P.`` there may be a space."""
    spaced = {"P.P.S": r"p\.\s?p\.\s?s", "P.S.": r"p\.\s?s\."}
    marker = postscript_marker.strip()
    if marker in spaced:
        return re.search(spaced[marker], text.lower()) is not None
    return occurrences(marker.lower(), text.lower()) > 0


# Format -----------------------------------------------------------------------------------------


@_instruction("detectable_format:number_bullet_lists")
def number_bullet_lists(text: str, *, num_bullets: int) -> bool:
    """Exactly so many bullet points: lines that begin with ``-``, or with one ``*``."""
    _require_count(num_bullets)
    # Of many blank lines one is enough, and the search would take their number squared.
    text = re.sub(r"\n(?:[^\S\n]*\n){2,}", "\n\n", text)
    stars = re.findall(r"^\s*\*[^\*].*$", text, re.MULTILINE)
    dashes = re.findall(r"^\s*-.*$", text, re.MULTILINE)
    return len(stars) + len(dashes) == num_bullets


@_instruction("detectable_format:number_highlighted_sections")
def number_highlighted_sections(text: str, *, num_highlights: int) -> bool:
    """At least so many highlighted passages, ``*so*``; one ``**so**`` counts as one."""
    _require_count(num_highlights)
    single = re.findall(r"\*[^\n\*]*\*", text)
    double = re.findall(r"\*\*[^\n\*]*\*\*", text)
    found = [*single, *double]
    return sum(bool(passage.strip("*").strip()) for passage in found) >= num_highlights


@_instruction("detectable_format:multiple_sections")
def multiple_sections(text: str, *, section_spliter: str, num_sections: int) -> bool:
    """At least so many sections that begin with the word and a number, in this case of letters."""
    _require_count(num_sections)
    word = section_spliter.strip()
    return occurrences(word, text, after=r"\s?\d+", any_case=False) >= num_sections


@_instruction("detectable_format:title")
def title(text: str) -> bool:
    """A line has a title in double angle brackets."""
    found = re.findall(r"<<[^\n]+>>", text)
    return any(passage.lstrip("<").rstrip(">").strip() for passage in found)


@_instruction("detectable_format:json_format")
def json_format(text: str) -> bool:
    """The text is JSON, fenced or not."""
    body = text.strip()
    for fence in ("```json", "```Json", "```JSON", "```"):
        body = body.removeprefix(fence)
    try:
        json.loads(body.removesuffix("```").strip())
    except (ValueError, RecursionError):
        return False
    return True


@_instruction("detectable_format:constrained_response")
def constrained_response(text: str) -> bool:
    """One of the three answers that IFEval knows is somewhere in the text."""
    return any(answer in text for answer in _ANSWERS)


# Combinations, start and end, punctuation -------------------------------------------------------


@_instruction("combination:two_responses")
def two_responses(text: str) -> bool:
    """``******`` divides the text into two different answers."""
    parts = [part.strip() for part in text.split("******")]
    answers = [part for part in parts if part]
    return all(parts[1:-1]) and len(answers) == 2 and answers[0] != answers[1]


@_instruction("combination:repeat_prompt")
def repeat_prompt(text: str, *, prompt_to_repeat: str) -> bool:
    """The text begins with the prompt, in any case."""
    prompt = prompt_to_repeat.strip()
    if not prompt:
        raise ConstraintError("the prompt to repeat is empty")
    return text.strip().lower().startswith(prompt.lower())


@_instruction("startend:end_checker")
def end_checker(text: str, *, end_phrase: str) -> bool:
    """The text ends with the phrase, in any case; quotation marks around it do no harm."""
    phrase = end_phrase.strip()
    if not phrase:
        raise ConstraintError("the phrase to end with is empty")
    return text.strip().strip('"').lower().endswith(phrase.lower())


@_instruction("startend:quotation")
def quotation(text: str) -> bool:
    """The text is wrapped in double quotation marks."""
    body = text.strip()
    return len(body) > 1 and body[0] == body[-1] == '"'


@_instruction("punctuation:no_comma")
def no_comma(text: str) -> bool:
    """The text has no comma."""
    return "," not in text
