"""The conversation a policy is shown for a prompt: the one place that adds the system prompt."""

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
