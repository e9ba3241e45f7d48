"""A conversation as a policy is shown it (with the system prompt), and as one text to read."""

from __future__ import annotations

from collections.abc import Sequence

from prefloop.data.protocol import Message


def with_system_prompt(
    messages: Sequence[Message], system_prompt: str | None
) -> tuple[Message, ...]:
    """``messages``, led by ``system_prompt`` unless they have a system message of their own."""
    if system_prompt and messages[0]["role"] != "system":
        return ({"role": "system", "content": system_prompt}, *messages)
    return tuple(messages)


def conversation_text(messages: Sequence[Message]) -> str:
    """A conversation as one text: a single user turn as it is, more turns under role labels."""
    if len(messages) == 1 and messages[0]["role"] == "user":
        return str(messages[0]["content"])
    return "\n\n".join(f"[{turn['role']}]\n{turn['content']}" for turn in messages)
