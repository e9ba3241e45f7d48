"""The JSON objects in a judge's answer, repeated keys and all: which one counts is not guessed."""

from __future__ import annotations

import json
import re
from typing import Any

_FENCED = re.compile(r"\A```(?:json)?\s*\n(.*)\n\s*```\Z", re.DOTALL)

_THOUGHT = re.compile(r"\A\s*<think>.*?</think>", re.DOTALL)

JsonObject = list[tuple[str, Any]]
"""The (key, value) pairs of an object, repeated keys and all."""


def without_thought(text: str) -> str:
    """``text`` without a chain of thought in front of it, between ``<think>`` tags."""
    return _THOUGHT.sub("", text).strip()


def json_objects(text: str) -> list[JsonObject]:
    """The JSON objects that ``text`` consists of, a chain of thought in front of them and a code
    fence around them taken off.

    Raises ``ValueError`` for anything but white space between and around them.
    """
    text = without_thought(text)
    fenced = _FENCED.match(text)
    # A nested object becomes a list of pairs too, which is no string and so never a verdict.
    decoder = json.JSONDecoder(object_pairs_hook=list)
    objects: list[JsonObject] = []
    rest = fenced[1].strip() if fenced else text
    while rest:
        if not rest.startswith("{"):
            raise ValueError("expected a JSON object and nothing else")
        try:
            found, end = decoder.raw_decode(rest)
        except RecursionError:
            raise ValueError("nested too deeply") from None
        objects.append(found)
        rest = rest[end:].lstrip()
    return objects


def single_values(objects: list[JsonObject]) -> dict[str, Any]:
    """The value of each key in ``objects``, which all have to agree.

    Raises ``ValueError`` for a key that has two different values: nobody knows which was meant.
    """
    values: dict[str, Any] = {}
    for key, value in (pair for pairs in objects for pair in pairs):
        if key != "rationale" and values.setdefault(key, value) != value:
            raise ValueError(f"conflicting values of {key!r}: {values[key]!r} and {value!r}")
        values.setdefault(key, value)
    return values
