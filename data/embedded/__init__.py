"""The embedded default: tiny models and prompts that ship with prefloop (see training/tiny)."""

from __future__ import annotations

from pathlib import Path

from prefloop.data.errors import InputError

_FOLDER = Path(__file__).parent
_SCHEME = "embedded:"
_PATHS = {
    "policy": _FOLDER / "models" / "policy",
    "judge": _FOLDER / "models" / "judge",
    "prompts": _FOLDER / "prompts.jsonl",
    "heldout": _FOLDER / "heldout.jsonl",
}


def resolve_embedded(name: str) -> str:
    """The path behind ``embedded:policy``, ``:judge``, ``:prompts`` or ``:heldout``.

    Any other name is returned as it is. Raises :class:`InputError` for an unknown embedded name.
    """
    if not name.startswith(_SCHEME):
        return name
    key = name.removeprefix(_SCHEME)
    if key not in _PATHS:
        valid = ", ".join(_SCHEME + known for known in _PATHS)
        raise InputError(f"{name}: no such embedded file; there are {valid}")
    return str(_PATHS[key])
