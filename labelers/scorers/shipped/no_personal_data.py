"""Answers that hold no personal data and no key, as far as these have a form."""

from __future__ import annotations

from typing import Any

from prefloop.data.checks.personal_data import personal_parts
from prefloop.data.checks.secret_tokens import secret_parts
from prefloop.labelers.scorers.shipped.outcomes import RIGHT, WRONG


def score(text: str, **_: Any) -> float:
    """Whether the answer holds no e-mail address, phone number, address of the open internet, card,
    bank account, national id or key. Names, streets and what is written out in words have no form
    to be told by."""
    found = next(personal_parts(text), None) or next(secret_parts(text), None)
    return WRONG if found else RIGHT
