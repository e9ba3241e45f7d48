"""What is wrong with settings, in words of those who write them: key by key, with what to write."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from prefloop.data.utf8 import one_line

_MOST = 10
_SHOWN_KEYS = 8
_SHOWN_CHARACTERS = 60
_BRANCH = re.compile(
    r"(literal|tuple|list|dict|function-\w+|constrained-\w+)\[|^(a|one|two|several) "
)
"""Parts of a location that name a branch of a union, and that nobody wrote."""
_KINDS = {
    "int_parsing": "a whole number",
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_parsing": "a number",
    "float_type": "a number",
    "bool_parsing": "true or false",
    "bool_type": "true or false",
    "string_type": "text",
}

_Problem = Mapping[str, Any]


def refused_settings(error: ValidationError, form: Any) -> list[str]:
    """A line a problem, each with the key as it is written (``label.labelers.0.model``), what
    stands there and what may. ``form`` is the model that the settings were read as, or a union of
    several."""
    models = _models_in(form)
    found = _that_say_something([dict(each) for each in error.errors(include_url=False)])
    lines = list(dict.fromkeys(_explain(problem, models) for problem in found))
    left = len(lines) - _MOST
    return [*lines[:_MOST], f"and {left} more"] if left > 0 else lines


def _that_say_something(problems: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Without what follows from another problem: a list that lost its bad items is too short, and
    of a union's branches, one alone came close."""
    for problem in problems:
        problem["written"] = tuple(
            part for part in problem["loc"] if not (isinstance(part, str) and _BRANCH.match(part))
        )
    return [
        problem
        for at, problem in enumerate(problems)
        if not any(_comes_closer(other, problem) for other in problems)
        and not (_in_branches(problem) and _is_told(problem, problems[:at]))
    ]


def _in_branches(problem: _Problem) -> bool:
    return bool(problem["written"] != problem["loc"])


def _is_told(problem: _Problem, before: Sequence[_Problem]) -> bool:
    return any(other["written"] == problem["written"] for other in before)


def _comes_closer(other: _Problem, problem: _Problem) -> bool:
    key, longer = problem["written"], other["written"]
    within = len(longer) > len(key) and longer[: len(key)] == key
    return within and (problem["type"] == "too_short" or _in_branches(problem))


def _explain(problem: _Problem, models: Sequence[type[BaseModel]]) -> str:
    key, beside = _walk(problem["written"], models)
    location, said = ".".join(key), _said(problem, beside)
    if problem["type"] == "extra_forbidden":
        said = f"unknown key{_near_or_all(str(problem['loc'][-1]), _keys_of(beside))}"
    if problem["type"] == "union_tag_invalid":
        location += "." + problem["ctx"]["discriminator"].strip("'")
    return one_line(f"{location}: {said}" if location else said)


def _walk(
    location: Sequence[Any], models: Sequence[type[BaseModel]]
) -> tuple[list[str], Sequence[type[BaseModel]]]:
    """The keys on the way as they are written, and the models of the last of them; for a key that
    is unknown, the models that it stands in."""
    written = []
    for part in location:
        # List indices, mapping keys and union tags lead to no field; tags are not written either.
        fields = [
            field
            for model in models
            for name, field in model.model_fields.items()
            if part in (name, field.alias)
        ]
        # Where there are several models, the tag comes first, though one has a key of that name.
        tagged = [model for model in models if part in _tags(model)]
        if tagged and (len(models) > 1 or not fields):
            models = tagged
            continue
        written.append(str(part))
        if fields:
            models = [found for field in fields for found in _models_in(field.annotation)]
    return written, models


def _said(problem: _Problem, models: Sequence[type[BaseModel]]) -> str:
    kind, given, context = problem["type"], problem["input"], problem.get("ctx", {})
    if kind in ("literal_error", "union_tag_invalid"):
        expected = context["expected" if kind == "literal_error" else "expected_tags"]
        given = given if kind == "literal_error" else context["tag"]
        names = re.findall(r"'([^']*)'", expected)
        near = _nearest(str(given), names)
        remedy = f": did you mean {near!r}?" if near else ""
        return f"must be {_any_of(names) or expected}, not {_shown(given)}{remedy}"
    if kind == "union_tag_not_found":
        tags = [tag for model in models for tag in _tags(model)]
        return f"has no {context['discriminator']}: {_any_of(tags) or 'say which'}"
    if kind in ("model_type", "model_attributes_type", "dict_type", "mapping_type"):
        return f"must be a mapping of keys{_how_to_map(given, models)}"
    if kind in ("tuple_type", "list_type", "set_type"):
        remedy = f", such as [{given}]" if isinstance(given, str) and given else ""
        return f"must be a list{remedy}, not {_shown(given)}"
    if kind in _KINDS:
        quotes = kind == "string_type" and isinstance(given, int | float)
        return f"must be {_KINDS[kind]}, not {_shown(given)}" + (": quote it" if quotes else "")
    return str(problem["msg"]).removeprefix("Value error, ")


def _how_to_map(given: Any, models: Sequence[type[BaseModel]]) -> str:
    """What to write in place of a value that is no mapping."""
    tags = [tag for model in models for tag in _tags(model)]
    if tags:
        tag = _nearest(given, tags) if isinstance(given, str) else None
        return f", such as {{type: {tag or tags[0]}}}, not {_shown(given)}"
    keys = _keys_of(models)
    some = ", ".join(keys[:_SHOWN_KEYS]) + (" and others" if len(keys) > _SHOWN_KEYS else "")
    return f" ({some}), not {_shown(given)}" if keys else f", not {_shown(given)}"


def _shown(given: Any) -> str:
    if given is None or isinstance(given, bool):
        return {None: "null", True: "true", False: "false"}[given]
    if isinstance(given, Mapping):
        return "a mapping"
    if isinstance(given, list | tuple):
        return "a list"
    shown = repr(given)
    return shown if len(shown) <= _SHOWN_CHARACTERS else shown[: _SHOWN_CHARACTERS - 1] + "…"


def _any_of(names: Sequence[str]) -> str:
    quoted = [repr(name) for name in names]
    return " or ".join(filter(None, [", ".join(quoted[:-1]), *quoted[-1:]]))


def _nearest(word: str, names: Sequence[str]) -> str | None:
    near = difflib.get_close_matches(word, names, n=1, cutoff=0.5)
    return near[0] if near else None


def _near_or_all(key: str, keys: Sequence[str]) -> str:
    near = _nearest(key, keys)
    if near:
        return f", did you mean {near!r}?"
    return f"; valid here: {', '.join(keys)}" if keys else ""


def _keys_of(models: Sequence[type[BaseModel]]) -> list[str]:
    return sorted(
        {field.alias or name for model in models for name, field in model.model_fields.items()}
    )


def _tags(model: type[BaseModel]) -> list[str]:
    """What says that a mapping is one of ``model``: its words for ``type`` or ``kind``."""
    fields = [model.model_fields[name] for name in ("type", "kind") if name in model.model_fields]
    return [
        word for field in fields for word in get_args(field.annotation) if isinstance(word, str)
    ]


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for part in get_args(annotation) for model in _models_in(part)]
