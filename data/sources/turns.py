"""One turn of a conversation as it is found: who speaks, what is said, and what can be wrong."""

from __future__ import annotations

from typing import Any

ROLES = {
    "system": "system", "developer": "system",
    "user": "user", "human": "user", "prompter": "user",
    "assistant": "assistant", "gpt": "assistant", "chatgpt": "assistant", "bot": "assistant",
    "model": "assistant",
}  # fmt: skip
"""What the world calls them, in lower case, and what we call them."""


class Unusable(Exception):
    """Why a row cannot be used; ends in a ``BadRow``, never leaves the readers."""

    def __init__(self, field: str, reason: str, detail: str) -> None:
        super().__init__(field, reason, detail)
        self.field, self.reason, self.detail = field, reason, detail


def read_turn(turn: Any, field: str, number: int) -> tuple[str, str]:
    """Role and content of ``turn``, the ``number``-th of the column ``field``.

    It is ``{role, content}`` or ``{from, value}``. Raises :class:`Unusable`.
    """
    if not isinstance(turn, dict):
        raise Unusable(
            field, "bad_messages", f"turn {number} is no object: write {{role, content}}"
        )
    said = turn.get("role", turn.get("from"))
    role = ROLES.get(said.lower()) if isinstance(said, str) else None
    if role is None:
        raise Unusable(
            field,
            "bad_messages",
            f"turn {number} has the role {said!r}: use system, user or assistant",
        )
    content = turn.get("content", turn.get("value"))
    if not isinstance(content, str):
        raise Unusable(
            field,
            "bad_messages",
            f"turn {number} has content of type {type(content).__name__}: write one string",
        )
    return role, content
