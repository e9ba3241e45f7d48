"""Criteria of a rubric, as judges are told them and as prompts bring them along."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import Field, ValidationError, field_validator

from prefloop.data.strict import Strict
from prefloop.data.utf8 import is_blank, is_text, listed, one_line

MOST_CHOICES = 9
"""A choice is told by one digit."""
RUBRIC = "rubric"
"""In a prompt's metadata: its criteria, where ``columns.rubric`` names a column of them."""
_TEXT = ("text", "criterion", "description")
_NAME = ("name", "title")
_WEIGHT = ("weight", "points")
_KNOWN = {*_TEXT, *_NAME, *_WEIGHT, "choices", "veto"}
_YAML_WORDS = {True: "yes", False: "no"}
"""What ``no`` and ``yes`` without quotes are in YAML."""
_OF_NO_USE = {"tags"}
"""Keys of well-known rubrics that say nothing about how an answer is judged."""


class Criterion(Strict):
    """One thing that an answer is judged by."""

    text: str
    """What a good answer does, or, where the weight is negative, a fault that it does not have."""
    name: str | None = None
    """A short name for reports; null is the text."""
    weight: Annotated[float, Field(ge=-1e6, le=1e6)] = 1.0
    """Its share in the weighted mean. Negative: the criterion names a fault, and the less an answer
    has of it, the better."""
    choices: Annotated[tuple[str, ...], Field(min_length=2, max_length=MOST_CHOICES)] = (
        "no",
        "yes",
    )
    """How far an answer meets it, from not at all to fully. They stand at equal distances."""
    veto: bool = False
    """An answer that does not meet it at all loses against any that passes all vetoes."""

    @field_validator("text", "name")
    @classmethod
    def _says_something(cls, value: str | None) -> str | None:
        if value is None:
            return None
        if is_blank(value) or not is_text(value):
            raise ValueError("holds no text")
        return value.strip()

    @field_validator("weight")
    @classmethod
    def _weighs(cls, value: float) -> float:
        if value == 0:
            raise ValueError("is 0: a criterion that does not count is left out")
        return value

    @field_validator("choices")
    @classmethod
    def _differ(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        lines = tuple(" ".join(choice.split()) for choice in value)
        if not all(lines) or len({line.casefold() for line in lines}) < len(lines):
            raise ValueError("must be texts that differ from each other")
        return lines

    @property
    def label(self) -> str:
        """Its name, or its text on one line."""
        return self.name or one_line(self.text)


def rubric_of(value: Any) -> tuple[Criterion, ...] | None:
    """The criteria in ``value`` as :func:`criteria_of` reads them; null where it holds nothing, as
    an empty cell of a CSV file or an empty list of a Parquet one does."""
    nothing = value is None or value == [] or (isinstance(value, str) and is_blank(value))
    return None if nothing else criteria_of(value)


def criteria_of(value: Any) -> tuple[Criterion, ...]:
    """The criteria in a list of texts or objects, or in such a list written as JSON.

    An object has the keys of :class:`Criterion`; ``criterion`` or ``description`` stand for
    ``text``, ``title`` for ``name`` and ``points`` for ``weight``. Raises ``ValueError``, saying in
    one line which criterion is wrong and why.
    """
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            raise ValueError(
                "is no JSON: write a list of criteria, each a text or an object"
            ) from (None)
    if not isinstance(value, list | tuple):
        raise ValueError(
            f"is of type {type(value).__name__} where a list of criteria is needed, each a text or "
            "an object with a text"
        )
    if not value:
        raise ValueError("is an empty list of criteria")
    found = tuple(_criterion(number, each) for number, each in enumerate(value, start=1))
    texts = [one.text for one in found]
    for number, text in enumerate(texts):
        if text in texts[:number]:
            raise ValueError(
                f"criterion {number + 1} says the same as criterion {texts.index(text) + 1}: keep "
                "one of them"
            )
    return found


def _criterion(number: int, value: Any) -> Criterion:
    if isinstance(value, Criterion):
        return value
    if isinstance(value, str):
        value = {"text": value}
    if not isinstance(value, Mapping):
        raise ValueError(f"criterion {number} is neither a text nor an object with a text")
    # In a column of structs each has all keys.
    given = {key: one for key, one in value.items() if one is not None and key not in _OF_NO_USE}
    unknown = given.keys() - _KNOWN
    if unknown:
        raise ValueError(
            f"criterion {number} has the unknown keys {listed(sorted(unknown))}; there are text, "
            "name, weight, choices and veto"
        )
    fields = {key: given[key] for key in ("choices", "veto") if key in given}
    if isinstance(fields.get("choices"), list):
        fields["choices"] = [
            _YAML_WORDS.get(one, one) if isinstance(one, bool) else one for one in fields["choices"]
        ]
    for name, keys in (("text", _TEXT), ("name", _NAME), ("weight", _WEIGHT)):
        named = [key for key in keys if key in given]
        if len(named) > 1:
            raise ValueError(f"criterion {number} has {listed(named)}: keep one as its {name}")
        if named:
            fields[name] = given[named[0]]
    if "text" not in fields:
        raise ValueError(f"criterion {number} has no text")
    if isinstance(fields.get("weight", 1), bool | str):
        raise ValueError(f"criterion {number}: weight: write a number")
    if not isinstance(fields.get("veto", False), bool):
        raise ValueError(f"criterion {number}: veto: write true or false")
    try:
        return Criterion.model_validate(fields)
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        key = ".".join(map(str, problem["loc"])) or "it"
        said = problem["msg"].removeprefix("Value error, ")
        raise ValueError(f"criterion {number}: {key}: {said}") from None
