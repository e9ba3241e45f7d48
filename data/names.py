"""Names that become names of files or folders: none of them leads out of its folder."""

from __future__ import annotations

import unicodedata
from typing import Annotated

from pydantic import AfterValidator

LONGEST = 64
_MOST_BYTES = 200
_UNSEEN = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp", "Zs"}


def name_problem(name: str) -> str | None:
    """Why ``name`` cannot be the name of a file, in words that say what to write; null where it
    can."""
    if not name.strip():
        return "is empty: give it a name"
    if len(name) > LONGEST or len(name.encode("utf-8", "replace")) > _MOST_BYTES:
        return f"has {len(name)} characters: {LONGEST} are the most"
    if any(unicodedata.category(letter) in _UNSEEN for letter in name.replace(" ", "")):
        return "holds characters that nobody sees: write it with letters, digits, - and _"
    if set("/\\\u2044\u2215\uff0f\uff3c") & set(name):
        return "holds a separator of folders: a name is no path"
    if name.startswith(".") or ".." in name:
        return "begins with a dot or holds two: it could lead out of its folder"
    return None


def _checked(name: str) -> str:
    problem = name_problem(name)
    if problem:
        raise ValueError(f"{name!r} {problem}")
    return name


FileName = Annotated[str, AfterValidator(_checked)]
"""A name in a config that becomes the name of a file or folder."""
