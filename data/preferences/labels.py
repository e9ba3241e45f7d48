"""What a label says about two answers: one reading for every file that holds labels or verdicts."""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any, Literal

from prefloop.data.errors import InputError

PairLabel = Literal["a", "b", "tie"]

LABELS: Mapping[str, PairLabel] = {
    "1": "a", "a": "a", "model_a": "a", "first": "a", "a>b": "a", "a>>b": "a", "b<a": "a",
    "2": "b", "b": "b", "model_b": "b", "second": "b", "b>a": "b", "b>>a": "b", "a<b": "b",
    "0": "tie", "0.5": "tie", "1.5": "tie", "tie": "tie", "draw": "tie", "equal": "tie",
    "both": "tie", "neither": "tie", "a=b": "tie", "tie (bothbad)": "tie", "both_bad": "tie",
    "bothbad": "tie", "both_good": "tie", "equally_good": "tie", "no_preference": "tie",
}  # fmt: skip
"""What labels mean unless the layout or the user says otherwise."""

_WRAPPED = re.compile(r"""\A(?:\[\[(.*)\]\]|\[(.*)\]|"(.*)"|'(.*)'|`(.*)`)\Z""", re.DOTALL)
_NUMBER = re.compile(r"[+-]?(?:0|[1-9][0-9]{0,14})(?:\.[0-9]{0,15})?")
_SIDE = re.compile(
    r"(?:(?:model|assistant|answer|response|output|completion|option|candidate)[ _-]*)?"
    r"(?:\(([ab])\)|([ab]))"
)


def label_text(value: Any) -> str | None:
    """A label as the text to look up: 1, 1.0, "1" and " 1.0 " are one label, true and "True" one,
    "A", "a" and "[[A]]" one. None for what is no label: null, not a number, a list, blank text."""
    if hasattr(value, "item") and not isinstance(value, str):  # a scalar of numpy
        value = value.item()
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float | Decimal):
        return _number_text(value)
    if not isinstance(value, str):
        return None
    text = unicodedata.normalize("NFKC", value).strip().casefold()
    while (wrapped := _WRAPPED.match(text)) is not None:
        text = next(inside for inside in wrapped.groups() if inside is not None).strip()
    if _NUMBER.fullmatch(text):
        return _number_text(float(text))
    return text or None


def _number_text(value: int | float | Decimal) -> str | None:
    if isinstance(value, int):
        return str(value) if abs(value) < 10**15 else None
    number = float(value)
    if not math.isfinite(number):
        return None
    return str(int(number)) if number.is_integer() else repr(number)


def read_label(value: Any, labels: Mapping[str, PairLabel], a: str, b: str) -> PairLabel | None:
    """What ``value`` says by ``labels`` (see :func:`parse_labels`) about the answers in the columns
    ``a`` and ``b``; it may be a column's name too. None where that is not known."""
    text = label_text(value)
    if text is None or text in labels:
        return labels.get(text or "")
    if text in (label_text(a), label_text(b)):
        return "a" if text == label_text(a) else "b"
    side = _SIDE.fullmatch(text)
    return labels.get((side[1] or side[2]) if side else re.sub(r"[\s_-]+", "_", text))


def known_labels(labels: Mapping[str, PairLabel]) -> str:
    """The labels that may be given, for a message."""
    return "1, 2, a, b, tie" if labels is LABELS else ", ".join(labels)


def parse_labels(text: str) -> dict[str, PairLabel]:
    """``"a=1,b=0,tie=2"`` as what each label means; ``|`` parts several labels of one meaning.

    Raises :class:`InputError` for an unknown key or a label with two meanings.
    """
    meanings: dict[str, PairLabel] = {}
    given = key_values(text, "--labels", ("a", "b", "tie"))
    verdicts: tuple[PairLabel, ...] = ("a", "b", "tie")
    for verdict in verdicts:
        for label in given.get(verdict, "").split("|"):
            word = label_text(label)
            if word is not None and meanings.setdefault(word, verdict) != verdict:
                raise InputError(f"--labels {text}: {label!r} is given two meanings")
    if not {"a", "b"} <= set(meanings.values()):
        raise InputError(f"--labels {text}: say which label prefers a and which b: a=1,b=2,tie=0")
    return meanings


def key_values(text: str, option: str, keys: tuple[str, ...]) -> dict[str, str]:
    """``"key=value,..."`` of an option. Raises ``InputError`` for what cannot be read."""
    found: dict[str, str] = {}
    for part in text.split(","):
        key, equals, value = (piece.strip() for piece in part.partition("="))
        if key not in keys or not equals or not value or key in found:
            raise InputError(
                f"{option} {text}: cannot read {part!r}: write KEY=VALUE, each of "
                f"{', '.join(keys)} at most once"
            )
        found[key] = value
    return found


@dataclass
class SeenLabels:
    """The labels of a file in which nobody said what they mean."""

    words: set[str] = field(default_factory=set)
    name: str = ""
    """Of the field that they are in."""
    from_zero: bool = False
    """Whether 0, 1 and 2 were taken for first, second and tie, as Auto-J counts."""
    answers: tuple[str, str] = ("", "")
    """The columns of the two answers, where they are numbered from 0."""

    def look(self, value: Any, name: str, *, from_zero: bool = False) -> None:
        """Take in one label."""
        text = label_text(value)
        if text is not None:
            self.words.add(text)
            self.name = name
            self.from_zero |= from_zero

    def look_at_answers(self, a: str, b: str) -> None:
        """Take in the columns of the two answers that labels are about."""
        if a[-1:] == "0" and b[-1:] == "1":
            self.answers = (a, b)

    def check(self, path: str, remedy: str = "") -> None:
        """Raise ``InputError`` for labels that can be understood in two ways: 1 beside 0, 0.5 or a
        negative number, and none that says second; numbers of a scale, or from 0 to 1; where
        counting begins with 0, no 0; 0 or 1 where the answers are numbered so."""
        if self.from_zero:
            if self.words and "0" not in self.words:
                raise InputError(
                    f"{path}: field {self.name!r} is {_either(self.words)} in all rows, and never "
                    "0, which Auto-J's files have for the first answer: "
                    + (remedy or "say what they mean with --labels a=0,b=1,tie=2 (or a=1,b=2)")
                )
            return
        numbers = {word: float(word) for word in self.words if _NUMBER.fullmatch(word)}
        beyond = any(number > 2 or number < -1 for number in numbers.values())
        if beyond and any(1 <= number <= 2 for number in numbers.values()):
            raise InputError(
                f"{path}: field {self.name!r} is {_either(self.words)}, a scale on which 1 and 2 "
                "may both mean that the same answer is better: "
                + (remedy or "say what each means with --labels, e.g. a=1|2|3,b=5|6|7,tie=4")
            )
        shares = any(0 < number < 1 and number != 0.5 for number in numbers.values())
        if shares and self.words & {"0", "1"}:
            raise InputError(
                f"{path}: field {self.name!r} is {_either(self.words)}, numbers from 0 to 1 of "
                "which nobody says whose chance they are: "
                + (remedy or "write a, b or tie in their place, or name a column that does")
            )
        if self.answers[0] and self.words & {"0", "1"} and "2" not in self.words:
            raise InputError(
                f"{path}: field {self.name!r} is {_either(self.words)}, which may be the number of "
                f"an answer ({' or '.join(self.answers)}), or 1 for the first: "
                + (remedy or "say which with --labels a=0,b=1 (or a=1,b=0, or a=1,b=2,tie=0)")
            )
        if self.words & {"0", "1"} and not any(LABELS.get(word) == "b" for word in self.words):
            others = {word for word in self.words if word in ("0", "0.5") or word[:1] == "-"}
            if others - {"0"} or {"0", "1"} <= self.words:
                raise InputError(
                    f"{path}: field {self.name!r} is {_either(self.words)} in all rows, which may "
                    "mean second and first, first and second, or tie and first: "
                    + (remedy or "say which with --labels a=1,b=0 (or a=0,b=1, or a=1,b=2,tie=0)")
                )


def _either(words: Iterable[str]) -> str:
    *first, last = sorted(words)[:6]
    return f"{', '.join(first)} or {last}"


def labels_of_verdicts(
    words: set[str],
    own: Mapping[str, PairLabel],
    of_gold: Mapping[str, PairLabel],
    path: str,
) -> Mapping[str, PairLabel]:
    """What the ``words`` of a file with verdicts mean: what the user said (``own``), or else the
    usual. ``of_gold`` is what they mean in the file with gold labels, where that is known.

    Raises ``InputError`` where a word would mean one thing here and another there.
    """
    said, about = (own, "--labels") if own else (of_gold, "the file with gold labels")
    clash = next((word for word in sorted(words) if _differ(word, said)), None)
    outside = next((word for word in sorted(words) if word in LABELS and word not in said), None)
    # A number that the file with gold labels does not have shows that this file counts otherwise.
    otherwise = any(word in LABELS and word not in said and word[0].isdigit() for word in words)
    if clash is not None and (outside is not None if own else not otherwise):
        beside = f" beside {outside!r}, which --labels does not name" if own else ""
        raise InputError(
            f"{path}: the verdict {clash!r} means {said[clash]!r} by {about} and may mean "
            f"{LABELS[clash]!r} here{beside}: "
            + (
                "name every label with --labels, or write a, b and tie in one of the files"
                if own
                else "write a, b and tie here"
            )
        )
    return own or LABELS


def _differ(word: str, labels: Mapping[str, PairLabel]) -> bool:
    return word in labels and word in LABELS and labels[word] != LABELS[word]
