"""Which of several choices an answer takes: a letter, a number, or the choice's own words."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any

from prefloop.labelers.scorers.shipped.exact_answer import normal
from prefloop.labelers.scorers.shipped.final_answer import (
    behind_hashes,
    boxed,
    last_line,
    marked,
    tagged,
    without_styles,
)
from prefloop.labelers.scorers.shipped.outcomes import RIGHT, UNPARSED, WRONG, GoldError, gold_of

_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
_OPENING = r"[\s*_$\"'`(\[{]*"
_CLOSING = r"[\s*_$\"'`)\]}.]*"
_REFUSED = re.compile(
    rf"{_CLOSING}(?:(?:is|are|was|seems|looks)\s*)?"
    r"(?:not|n't|cannot|can't|wrong|incorrect|false)\b",
    re.IGNORECASE,
)
"""Behind a letter that is named only to be refused."""
_NEGATION = r"(?:\bnot|n't|\bnever|\bneither|\brather than|\binstead of|\bexcept)\s+(?:\w+\s+){0,2}"
_NO_ARTICLE = r"(?!(?<=[AI])\s+(?!is\b|because\b|since\b)[a-z])"
"""Not the word in "A good answer", "I think"."""


def score(
    text: str,
    *,
    reference: str | None,
    metadata: Mapping[str, Any],
    options: Mapping[str, Any],
    **_: Any,
) -> float:
    """Whether the answer takes the gold choice.

    ``options["choices"]`` names the metadata column with the texts of the choices, in order; null:
    only letters are known. Gold is a letter, a choice's text, or its place counted from 0. Raises
    ``GoldError`` where it is none of these.
    """
    choices, labels = _choices(metadata, options.get("choices"))
    gold = gold_of(reference, metadata, options)
    wanted = _LETTERS[labels.index(str(gold))] if str(gold) in labels else _gold(gold, choices)
    taken = _taken(text, choices)
    if taken is None:
        return UNPARSED
    return RIGHT if taken == wanted else WRONG


def _choices(
    metadata: Mapping[str, Any], column: str | None
) -> tuple[Sequence[str], Sequence[str]]:
    """The texts of the choices, and their labels where the data name them, as ARC's do."""
    if column is None:
        return (), ()
    found: Any = metadata.get(column)
    labels: Sequence[Any] = []
    if isinstance(found, Mapping):
        found, labels = found.get("text"), found.get("label") or []
    if not isinstance(found, list) or not all(isinstance(one, str) for one in found):
        raise GoldError(f"metadata column {column!r} holds no list of choices")
    if len(found) > len(_LETTERS):
        raise GoldError(f"metadata column {column!r} holds more than {len(_LETTERS)} choices")
    return found, [str(label) for label in labels]


def _gold(gold: Any, choices: Sequence[str]) -> str:
    if isinstance(gold, int) and not isinstance(gold, bool):
        if 0 <= gold < (len(choices) or len(_LETTERS)):
            return _LETTERS[gold]
        raise GoldError(f"the gold choice is number {gold} (from 0) of {len(choices)}")
    text = str(gold)
    found = _by_text(text, choices) or _letter(text, choices)
    if found is None:
        raise GoldError(f"the gold answer {text[:80]!r} is no letter and none of the choices")
    return found


def _taken(text: str, choices: Sequence[str]) -> str | None:
    """The letter of the choice that ``text`` takes; null where none or several are named."""
    places = boxed(text), tagged(text), behind_hashes(text), marked(text), last_line(text), text
    for part in places:
        if part is not None and (found := _letter(part, choices) or _by_text(part, choices)):
            return found
    return None


def _letter(text: str, choices: Sequence[str]) -> str | None:
    """The letter that ``text`` begins with and that stands by itself: B, (B), **B.** Paris. None
    where another one stands beside it (B and C), or it is named only to be refused (A is wrong)."""
    last = _LETTERS[len(choices) - 1] if choices else "J"
    stripped = unicodedata.normalize("NFKC", without_styles(text))
    short = re.IGNORECASE if len(re.findall(r"\w", stripped)) == 1 else 0
    match = re.match(
        rf"{_OPENING}(?i:option|choice|answer)?{_OPENING}([A-{last}])(?![\w']){_NO_ARTICLE}",
        stripped,
        short,
    )
    if match is None:
        return None
    behind = stripped[match.end() :]
    beside = re.match(
        rf"{_CLOSING}(?:[,/&+]|and\b|or\b){_OPENING}([A-{last}])(?![\w']){_NO_ARTICLE}", behind
    )
    if beside is not None and beside.group(1) != match.group(1):
        return None
    return None if _REFUSED.match(behind) else match.group(1).upper()


def _by_text(text: str, choices: Sequence[str]) -> str | None:
    """The letter of the only choice that ``text`` is, or that it names and does not deny."""
    plain = normal(text)
    if not plain:
        return None
    named = [normal(choice) for choice in choices]
    same = [at for at, choice in enumerate(named) if choice == plain]
    inside = [at for at, choice in enumerate(named) if choice and _names(plain, choice)]
    found = same or inside
    return _LETTERS[found[0]] if len(found) == 1 else None


def _names(text: str, choice: str) -> bool:
    """Whether ``choice`` stands in ``text`` as words of its own, and not behind a "not"."""
    word = rf"(?<!\w){re.escape(choice)}(?!\w)"
    return bool(re.search(word, re.sub(_NEGATION + word, " ", text)))
