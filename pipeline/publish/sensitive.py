"""What in a text opens a door, or is about a person: secrets and personal data of plain kinds."""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

from prefloop.data.checks.personal_data import personal_parts
from prefloop.data.checks.secret_tokens import secret_parts
from prefloop.pipeline.report.redact import environment_secrets


@lru_cache(maxsize=4096)  # a prompt stands in many rows, one after the other
def sensitive_parts(text: str) -> tuple[tuple[str, str], ...]:
    """What ``text`` has of secrets and of personal data: kind and the part itself, each part once.

    Kinds are those of ``data/checks/secret_tokens.py`` and ``personal_data.py``, ``home folder``
    and ``secret of the environment`` (the value of a variable here that is named like a key).
    """
    parts = (*_of_this_machine(text), *secret_parts(text), *personal_parts(text))
    return tuple(dict.fromkeys(parts))


def masked(part: str) -> str:
    """The beginning of ``part``: enough to find it again, too little to use it."""
    return f"{part[: min(4, len(part) // 3)]}… ({len(part)} characters)"


def _of_this_machine(text: str) -> Iterator[tuple[str, str]]:
    for value in environment_secrets():
        if value in text:
            yield "secret of the environment", value
    home = str(Path.home())
    if len(Path(home).parts) > 2 and home + os.sep in text:  # not "/root", which any text may say
        yield "home folder", home
