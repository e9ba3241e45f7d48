"""Which of a prompt's instructions an answer follows, by IFEval's strict and loose rules."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

from prefloop.labelers.scorers.check_types import ConstraintError
from prefloop.labelers.scorers.ifeval.instructions import INSTRUCTIONS

Strictness = Literal["strict", "loose"]
"""``loose`` also looks at the answer without its first line, its last, both, and its asterisks."""
IDS, ARGUMENTS = "instruction_id_list", "kwargs"
"""Columns of IFEval's prompts."""


def followed(row: Mapping[str, Any], text: str, mode: Strictness = "strict") -> list[bool]:
    """For each instruction of a prompt whether ``text`` follows it.

    ``row`` has IFEval's columns ``instruction_id_list`` and ``kwargs``, whatever else it has.
    Raises :class:`ConstraintError` where they are missing, or an instruction cannot be checked.
    """
    shown = [text] if mode == "strict" else list(dict.fromkeys(_variants(text)))
    # Checked before it is asked whether anything is there: that an instruction cannot be checked
    # must not depend on the answer.
    return [
        any(INSTRUCTIONS.check(name, arguments, one) and one.strip() for one in shown)
        for name, arguments in instructions_of(row)
    ]


def instructions_of(row: Mapping[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """Ids and arguments of a prompt's instructions. Raises :class:`ConstraintError`."""
    ids, arguments = _list(row.get(IDS)), _list(row.get(ARGUMENTS))
    if not ids or not all(isinstance(name, str) for name in ids):
        raise ConstraintError(f"the prompt's metadata has no list of ids {IDS!r}, as IFEval has it")
    if arguments is None or len(arguments) != len(ids):
        raise ConstraintError(f"{ARGUMENTS!r} must have one object for each of {IDS!r}")
    found = []
    for name, given in zip(ids, arguments, strict=True):
        if not isinstance(given, Mapping | None):
            raise ConstraintError(f"{name}: its {ARGUMENTS!r} are no object: {given!r}")
        # Tables have every argument of every type, null where it is not this one's.
        kept = {key: _whole(value) for key, value in (given or {}).items() if value is not None}
        found.append((name, kept))
    return found


def _list(value: Any) -> Sequence[Any] | None:
    return value if isinstance(value, list | tuple) else None


def _whole(value: Any) -> Any:
    """A number of a table whose column had to be of floats."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _variants(text: str) -> Iterator[str]:
    yield text
    yield text.replace("*", "")
    lines = text.split("\n")
    for kept in (lines[1:], lines[:-1], lines[1:-1]):
        shorter = "\n".join(kept).strip()
        yield shorter
        yield shorter.replace("*", "")
