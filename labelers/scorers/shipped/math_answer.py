"""Mathematical answers, compared by math-verify: 1/2 is 0.5 is \\frac{1}{2}."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping
from decimal import Decimal
from functools import cache
from typing import Any

from prefloop.labelers.scorers.shipped.final_answer import (
    behind_hashes,
    boxed,
    last_line,
    marked,
    tagged,
    without_styles,
)
from prefloop.labelers.scorers.shipped.outcomes import RIGHT, UNPARSED, WRONG, GoldError, gold_of

_JOINED = re.compile(r"(?<![\\a-zA-Z])[a-zA-Z]{2,}|[,;=].*[,;=]")
"""What may join several results: 3 or 4; x = 3, y = 4."""
_NUMBER = r"-?\d+(?:\.\d+)?"
_SEVERAL = re.compile(
    rf"\W*(?:not\b|{_NUMBER}\s*(?:(?:or|to|and|;)\s*{_NUMBER}|,\s+{_NUMBER}\s*(?:\Z|[.,;])))",
    re.IGNORECASE,
)
_WORDS = re.compile(r"(?<![\\a-zA-Z])[a-zA-Z]{3,}")
_OF_LATEX = re.compile(
    r"\\(?:begin|end)\s*\{[a-zA-Z*]+\}"
    r"|\\(?:text(?:[a-z]{2})?|mbox|mathrm|mathbf|operatorname)\s*\{[^{}]*\}"
)
"""Words that are LaTeX's own or between its braces: they make a formula no sentence."""
_ONLY_TEXT = re.compile(r"\\(?:text|mbox|textbf|textit|mathrm|mathbf)\s*\{[^{}]*\}")
_NOTHING_BUT_SEVERAL = re.compile(
    rf"\W*(?:not\s+{_NUMBER}|{_NUMBER}(?:\s*(?:or|and|,|;)\s*{_NUMBER})+)\W*", re.IGNORECASE
)
_LIST = re.compile(rf"\W*{_NUMBER}(?:\s*,\s*(?:and\s+)?{_NUMBER})+")
_THIN = r"(?:\\[,;:! ]|~|[\u00a0\u2009\u202f])"
_THOUSANDS = re.compile(
    rf"(?<![\w.,\\])\d{{1,3}}(?:{_THIN}\d{{3}})+(?!\d)"
    r"|(?:(?<=\{)|\A)\s*\d{1,3}(?: \d{3})+\s*(?=\}|\Z)"
)
"""1\\,000 and its kin, which are no products, and 1 000 alone between braces."""
_NO_DIGIT = re.compile(r"\\.|[^\d]")
_BOX = re.compile(r"\\(?:boxed|fbox)\s*\{")
_BETWEEN_BOXES = re.compile(r"(?:\W|_|\b(?:or|and|und|oder|et|ou|y|o|quad|qquad|text)\b)*")
"""What stands between boxes that are several results, and not a result and a later one."""
_SCIENTIFIC = re.compile(r"(?<![\w.])(\d+(?:\.\d+)?)[eE]([+-]?\d{1,2})(?![\w.]*\w)")
_MIXED = re.compile(r"(?<![\w./^])(\d{1,9})[ \u00a0]+(\d{1,9})\s*/\s*(\d{1,9})(?![\w/^])")
_SMALL_FRACTION = re.compile(r"(\d?)([\u00bc-\u00be\u2150-\u215e])")


def score(
    text: str,
    *,
    reference: str | None,
    metadata: Mapping[str, Any],
    options: Mapping[str, Any],
    **_: Any,
) -> float:
    r"""Whether the answer's last result equals the gold one.

    Gold may be a number, an expression, or a whole solution: then its ``\boxed{}`` or what stands
    behind ``####`` counts. Raises ``GoldError`` where it holds no result.
    """
    wanted, text = _plain(str(gold_of(reference, metadata, options))), _plain(text)
    gold = _gold(wanted)
    if not gold:
        raise GoldError(f"no mathematical result in the gold answer {wanted[:80]!r}")
    text = _from_last_box(text)
    if _are_the_words(text, wanted):
        return RIGHT
    first, whole = _parsed(text), _bare_result(text)
    if not first and not whole:
        return UNPARSED
    if _equal(gold, whole):
        return RIGHT
    # The library takes the first number behind "the answer is".
    alone = _is_one_result(text) or not _is_one_result(wanted)
    return RIGHT if alone and _equal(gold, first) else WRONG


def _equal(gold: tuple[Any, ...], found: list[Any]) -> bool:
    from math_verify import verify

    # Its time limits are alarms, which want the main thread; the pool has its own.
    return bool(found) and bool(verify(list(gold), found, timeout_seconds=None))


def _are_the_words(text: str, wanted: str) -> bool:
    """Whether gold is words (of a text in LaTeX), and the answer comes to the same ones."""
    gold = boxed(wanted) or wanted.strip("$ ")
    if not _ONLY_TEXT.fullmatch(gold):
        return False
    part = boxed(text) or tagged(text) or behind_hashes(text) or marked(text) or last_line(text)
    said, meant = (
        " ".join(without_styles(one).casefold().strip(" .*$").split()) for one in (part, gold)
    )
    return bool(said) and said == meant


def _plain(text: str) -> str:
    """``text`` with numbers as the library reads them: digits and signs of full width and of other
    scripts as ASCII, 1e3 as 1000, 1\\,000 too, ½ as 1/2, 2 1/2 as one fraction."""
    if not text.isascii():
        text = _SMALL_FRACTION.sub(
            lambda found: " ".join(filter(None, (found[1], _small_fraction(found[2])))), text
        )
        text = "".join(map(_as_ascii, text))
    text = _THOUSANDS.sub(lambda found: _NO_DIGIT.sub("", found[0]), text)
    text = _SCIENTIFIC.sub(lambda found: f"{Decimal(found[0]):f}", text)
    return _MIXED.sub(_as_fraction, text)


def _small_fraction(character: str) -> str:
    return unicodedata.normalize("NFKC", character).replace("\u2044", "/")


def _as_ascii(character: str) -> str:
    if "\uff01" <= character <= "\uff5e":
        return chr(ord(character) - 0xFEE0)
    if character.isdecimal():
        return str(int(character))
    return character


def _as_fraction(found: re.Match[str]) -> str:
    whole, above, below = map(int, found.groups())
    return f"{whole * below + above}/{below}" if 0 < above < below else found[0]


def _from_last_box(text: str) -> str:
    """``text`` from its last box on, where what stands between that and the one before says that
    the result is another now."""
    starts = [found.start() for found in _BOX.finditer(text)]
    if len(starts) < 2 or boxed(text[starts[-1] :]) is None:
        return text
    before = text[starts[-2] : starts[-1]]
    held = boxed(before)
    between = before[before.rindex(held) + len(held) :] if held else before
    return text if _BETWEEN_BOXES.fullmatch(between) else text[starts[-1] :]


@cache
def _gold(text: str) -> tuple[Any, ...]:
    for part in (boxed(text), behind_hashes(text), text):
        if part and (found := _bare(part) or _parsed(part)):
            return tuple(found)
    return ()


def _is_one_result(text: str) -> bool:
    """Whether ``text`` does not say that the answer is "3 or 4", or "not 3"."""
    if boxed(text) is not None:
        return True
    said = marked(text)
    return not (_SEVERAL.match(said) if said else _NOTHING_BUT_SEVERAL.fullmatch(text))


def _bare_result(text: str) -> list[Any]:
    """What the answer comes to, where that is a formula without dollars or a box around it."""
    if boxed(text) is not None:
        return []
    part = tagged(text) or behind_hashes(text) or marked(text) or last_line(text)
    part = part.rstrip(". *")
    joined = _JOINED.search(part) and not _LIST.fullmatch(part)
    return [] if joined else _bare(re.sub(r",\s*and\b", ",", part))


def _bare(part: str) -> list[Any]:
    """A bare formula, which is read as LaTeX only between dollars; words are none."""
    formula = (part or "").replace("\\$", "")
    if not formula or "$" in formula or _WORDS.search(_OF_LATEX.sub(" ", formula)):
        return []
    return _parsed(f"${formula}$")


def _parsed(text: str) -> list[Any]:
    from math_verify import parse

    return list(parse(text, parsing_timeout=None, raise_on_error=False))
