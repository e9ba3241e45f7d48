"""Named checks of a text, each a function with keyword parameters, and the arguments they take.

Ready-made constraints and IFEval's instructions are two such collections.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, TypeVar, get_type_hints

_CheckT = TypeVar("_CheckT", bound=Callable[..., bool])

_KINDS: dict[Any, type] = {
    str: str,
    int: int,
    bool: bool,
    list[str]: list,
    int | None: int,
    str | None: str,
    list[str] | None: list,
}
"""Annotations that a check may use, and the JSON type each stands for."""


class ConstraintError(ValueError):
    """A constraint that cannot be checked: unknown type, missing, unknown or wrong parameter."""


@dataclass(frozen=True, slots=True)
class _Parameter:
    kind: type
    optional: bool


@dataclass(frozen=True, slots=True)
class _Type:
    check: Callable[..., bool]
    parameters: Mapping[str, _Parameter]


class CheckTypes:
    """A collection of checks by name."""

    def __init__(self, noun: str) -> None:
        """``noun`` is what one of them is called in errors."""
        self._noun = noun
        self._types: dict[str, _Type] = {}

    def register(self, name: str) -> Callable[[_CheckT], _CheckT]:
        """Register the decorated function as ``name``.

        The function takes the text first and its parameters as keywords, annotated with ``str``,
        ``int``, ``bool``, ``list[str]``, or one of ``int``, ``str`` and ``list[str]`` with
        ``| None``. It may raise :class:`ConstraintError` for parameters that make no sense.

        Raises ``ValueError`` where the name is taken or an annotation is not one of those.
        """

        def register(function: _CheckT) -> _CheckT:
            if name in self._types:
                raise ValueError(f"{self._noun} {name!r} is already registered")
            hints = get_type_hints(function)
            parameters: dict[str, _Parameter] = {}
            for parameter in list(inspect.signature(function).parameters.values())[1:]:
                kind = _KINDS.get(hints.get(parameter.name))
                if kind is None:
                    raise ValueError(f"{name}.{parameter.name}: unsupported annotation")
                optional = parameter.default is not inspect.Parameter.empty
                parameters[parameter.name] = _Parameter(kind, optional)
            self._types[name] = _Type(function, parameters)
            return function

        return register

    def described(self) -> dict[str, dict[str, str]]:
        """Every name with its parameters and their types; one that may be left out: ``"int?"``."""
        return {
            name: {
                key: parameter.kind.__name__ + ("?" if parameter.optional else "")
                for key, parameter in entry.parameters.items()
            }
            for name, entry in sorted(self._types.items())
        }

    def check(self, name: str, arguments: Mapping[str, Any], text: str) -> bool:
        """Whether ``text`` passes the check ``name`` with ``arguments``.

        Raises :class:`ConstraintError` where it cannot be checked.
        """
        entry = self._types.get(name)
        if entry is None:
            near = _nearest(name, self._types)
            raise ConstraintError(f"unknown {self._noun} {name!r}{near}")
        return entry.check(text, **_checked(name, entry, arguments))


def _checked(name: str, entry: _Type, arguments: Mapping[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in arguments.items():
        parameter = entry.parameters.get(key)
        if parameter is None:
            hint = _nearest(key, entry.parameters)
            raise ConstraintError(f"{name}: unknown parameter {key!r}{hint}")
        if value is None and parameter.optional:
            continue  # Parquet and Arrow structs fill absent fields with null
        _require_kind(name, key, value, parameter.kind)
        found[key] = value
    for key, parameter in entry.parameters.items():
        if key not in found and not parameter.optional:
            raise ConstraintError(f"{name}: parameter {key!r} is missing")
    return found


def _require_kind(name: str, key: str, value: object, kind: type) -> None:
    right = isinstance(value, kind) and not (kind is int and isinstance(value, bool))
    if right and isinstance(value, list):
        right = all(isinstance(item, str) for item in value)
    if not right:
        wanted = {str: "string", int: "whole number", bool: "boolean"}
        expected = wanted.get(kind, "list of strings")
        raise ConstraintError(f"{name}: {key!r} must be a {expected}, got {value!r}")


def _nearest(word: str, options: Mapping[str, object]) -> str:
    close = get_close_matches(word, options, n=1, cutoff=0.5)
    if close:
        return f"; did you mean {close[0]!r}?"
    return f"; known: {', '.join(sorted(options))}" if options else "; it takes none"
