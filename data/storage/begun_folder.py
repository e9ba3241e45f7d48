"""A folder that is made beside the one that it becomes, so that what is there is whole."""

from __future__ import annotations

import shutil
from pathlib import Path

from prefloop.data.errors import InputError


def begun_beside(out: Path) -> Path:
    """Where ``out`` is until it is whole: a hidden folder beside it, by a name that is nobody
    else's. Raises ``InputError`` where ``out`` names no new folder."""
    if out.name in ("", ".."):
        raise InputError(f"{str(out) or '.'}: is there already: name a new folder")
    return out.with_name(f".{out.name}.prefloop-begun")


def begin_folder(out: Path) -> Path:
    """:func:`begun_beside`, made anew: what a killed process left there is removed."""
    begun = begun_beside(out)
    shutil.rmtree(begun, ignore_errors=True)
    begun.mkdir(parents=True)
    return begun
