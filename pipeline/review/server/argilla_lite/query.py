"""Text queries of Argilla's search field, as a test of a text.

The words of Elasticsearch's ``simple_query_string``: all words must occur; ``a | b``, ``-a``,
``"a phrase"``, ``pre*`` and parentheses. Case and accents make no difference. Words are found as
whole words; in scripts without spaces between words, such as Chinese, wherever they stand.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable

Test = Callable[[str], bool]

_TOKEN = re.compile(r'"([^"]*)"?|([()|])|([^\s()|"]+)')
_NO_SPACES = re.compile(
    "[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u2e80-\u2fdf\u3040-\u30ff\u31f0-\u31ff\u3400-\u4dbf"
    "\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]"
)
"""Thai, Lao, Burmese, Khmer, Chinese and Japanese letters."""


def compile_query(query: str) -> Test:
    """The test that ``query`` is, for texts as ``fold`` gives them. An empty query finds nothing.

    Nothing is an error: unbalanced parentheses and quotes are closed at the end.
    """
    tokens = _tokens(query)
    test = _alternatives(tokens)
    while tokens:  # closing parentheses that nothing opened
        tokens.pop(0)
        more = _alternatives(tokens)
        test = _both(test, more)
    return test or (lambda _: False)


def fold(text: str) -> str:
    """``text`` without what makes no difference: case, accents, runs of white space."""
    plain = unicodedata.normalize("NFKD", text)
    letters = "".join(one for one in plain if not unicodedata.combining(one))
    return " ".join(letters.casefold().split())


def _tokens(query: str) -> list[tuple[str, str]]:
    found = []
    for match in _TOKEN.finditer(query):
        phrase, sign, word = match.groups()
        if sign:
            found.append((sign, sign))
        elif word is not None:
            # A sign before a parenthesis or a quote is a token of its own.
            found.append(("-" if word == "-" else "word", word))
        else:
            found.append(("phrase", phrase))
    return found


def _alternatives(tokens: list[tuple[str, str]]) -> Test | None:
    """``a b | c``: one of the sides of ``|``."""
    sides: list[Test] = []
    while True:
        side = _sequence(tokens)
        if side:
            sides.append(side)
        if not tokens or tokens[0][0] != "|":
            break
        tokens.pop(0)
    if not sides:
        return None
    return sides[0] if len(sides) == 1 else lambda text: any(side(text) for side in sides)


def _sequence(tokens: list[tuple[str, str]]) -> Test | None:
    """``a -b (c | d)``: all of these."""
    test: Test | None = None
    negated = False
    while tokens and tokens[0][0] not in "|)":
        kind, value = tokens.pop(0)
        if kind == "-":
            negated = True
            continue
        if kind == "(":
            part = _alternatives(tokens)
            if tokens and tokens[0][0] == ")":
                tokens.pop(0)
        elif kind == "phrase":
            part = _term(value, prefix=False)
        else:
            negated = negated or (value.startswith("-") and len(value) > 1)
            word = value.lstrip("+-")
            part = _term(word.rstrip("*"), prefix=word.endswith("*"))
        if part:
            test = _both(test, _not(part) if negated else part)
        negated = False
    return test


def _term(words: str, *, prefix: bool) -> Test | None:
    folded = fold(words)
    if not any(one.isalnum() for one in folded):
        return None
    if _NO_SPACES.search(folded):
        return lambda text: folded in text
    before = r"(?<!\w)" if folded[0].isalnum() else ""
    after = "" if prefix or not folded[-1].isalnum() else r"(?!\w)"
    pattern = re.compile(before + re.escape(folded) + after)
    return lambda text: pattern.search(text) is not None


def _both(one: Test | None, other: Test | None) -> Test | None:
    if one is None or other is None:
        return one or other
    return lambda text: one(text) and other(text)


def _not(test: Test) -> Test:
    return lambda text: not test(text)
