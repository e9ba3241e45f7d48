"""The JSON objects in a judge's answer, repeated keys and all: which one counts is not guessed."""

from __future__ import annotations

import json
import re
from typing import Any

from prefloop.labelers.judges.thoughts import without_thought

CUT_OFF = "the answer was cut off at its token limit"
"""Why there is no verdict where the finish reason is ``length``."""

_FENCED = re.compile(
    r"\A(?P<fence>```|~~~)[ \t]*(?:json[c5]?\b)?(?P<inside>.*)\Z", re.DOTALL | re.I
)

JsonObject = list[tuple[str, Any]]
"""The (key, value) pairs of an object, repeated keys and all."""


def json_objects(text: str, *, cut: bool = False) -> list[JsonObject]:
    """The JSON objects that ``text`` consists of, a chain of thought in front of them and a code
    fence around them taken off. ``cut``: whether the answer was cut off at its token limit.

    Raises ``ValueError`` for anything but white space between and around them, so also for an
    object that the cut left open.
    """
    try:
        # A mark of a thought within a string of the object is a word about thoughts.
        return _objects(text.strip().removeprefix("\ufeff"), cut)
    except ValueError:
        pass
    try:
        return _objects(without_thought(text), cut)
    except ValueError as error:  # also of a thought that is not closed
        raise ValueError(f"{error}; {CUT_OFF}") if cut else error from None


def _objects(text: str, cut: bool) -> list[JsonObject]:
    # A nested object becomes a list of pairs too, which is no string and so never a verdict.
    # Models break lines within a string of JSON; what they mean by that is plain.
    decoder = json.JSONDecoder(object_pairs_hook=list, strict=False)
    objects: list[JsonObject] = []
    rest = _within_fence(text, cut)
    while rest:
        if not rest.startswith("{"):
            raise ValueError("expected a JSON object and nothing else")
        try:
            found, end = decoder.raw_decode(rest)
        except RecursionError:
            raise ValueError("nested too deeply") from None
        objects.append(found)
        rest = rest[end:].lstrip()
    if cut and not objects:
        raise ValueError("there is no JSON object")
    return objects


def _within_fence(text: str, cut: bool) -> str:
    fenced = _FENCED.match(text)
    if not fenced:
        return text
    inside = fenced["inside"].strip()
    if inside.endswith(fenced["fence"]):
        return inside.removesuffix(fenced["fence"]).strip()
    # Cut off behind the object, but before the fence was closed: the object is whole.
    return inside.rstrip("`~").rstrip() if cut else text


def single_values(objects: list[JsonObject]) -> dict[str, Any]:
    """The value of each key in ``objects``, which all have to agree.

    Raises ``ValueError`` for a key that has two different values: nobody knows which was meant.
    """
    values: dict[str, Any] = {}
    for key, value in (pair for pairs in objects for pair in pairs):
        first = values.setdefault(key, value)
        # True == 1 in Python, and not in JSON.
        if key != "rationale" and (
            first != value or isinstance(first, bool) != isinstance(value, bool)
        ):
            raise ValueError(f"conflicting values of {key!r}: {first!r} and {value!r}")
    return values
