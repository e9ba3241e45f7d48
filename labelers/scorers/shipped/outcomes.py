"""What a shipped verifier says of an answer, and the words it says it in."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

RIGHT, WRONG, UNPARSED = 1.0, 0.0, -1.0


_OF_GOLD = {RIGHT: "right", WRONG: "wrong", UNPARSED: "cannot be parsed"}
_WORDS = {
    "refusal": {RIGHT: "answers", WRONG: "refuses", UNPARSED: "cannot be told"},
    "pii": {RIGHT: "nothing found", WRONG: "personal data or a key"},
}


class GoldError(ValueError):
    """What is known to be right is missing, or cannot be read."""


def gold_of(reference: str | None, metadata: Mapping[str, Any], options: Mapping[str, Any]) -> Any:
    """What should be right: the metadata column ``options["gold"]``, or without one the prompt's
    reference answer.

    Raises :class:`GoldError` where there is none.
    """
    column = options.get("gold")
    found = metadata.get(column) if column else reference
    if found is None or found == "":
        where = f"metadata column {column!r}" if column else "reference answer"
        raise GoldError(
            f"the prompt has no {where}: map one with prompts.train.columns, or set gold"
        )
    return found


def worded(score: float, check: str) -> str:
    """What ``check`` says of an answer: ``right``, ``wrong``, ``cannot be parsed`` or the like, or
    the share of tests that passed."""
    return _WORDS.get(check, _OF_GOLD).get(score) or f"{score:.0%} right"
