"""A conversation as a policy is shown it (with the system prompt), and as one text to read.

A turn has ``role`` and ``content``, the content as people and judges read it: a call of a tool
stands there as JSON. Where a chat template is given more than that, the turn has ``full``: JSON
with ``turn``, the turn as templates take it, and on one turn ``tools``, what the policy may call.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from prefloop.data.protocol import Message

FULL = "full"
_PLAIN = {"role", "content"}


def as_sampled(row: Mapping[str, Any], system_prompt: str | None) -> tuple[Message, ...]:
    """The conversation in ``row`` (of ``schemas.PROMPT``) as a policy is shown it."""
    found = conversation_of(row["messages"], row.get("turns"), row.get("tools"))
    return with_system_prompt(found, system_prompt)


def conversation_of(
    messages: Sequence[Message], turns: str | None, tools: str | None
) -> list[Message]:
    """``messages`` with all that their ``turns`` and ``tools`` (JSON, as prompts and triples have
    them) say of them."""
    if turns is None and tools is None:
        return list(messages)
    whole = json.loads(turns) if turns is not None else messages
    found: list[Message] = []
    for index, (message, turn) in enumerate(zip(messages, whole, strict=True)):
        more: dict[str, Any] = {} if turn.keys() <= _PLAIN else {"turn": turn}
        if tools is not None and index == 0:
            more["tools"] = json.loads(tools)
        full = {FULL: json.dumps(more, ensure_ascii=False)} if more else {}
        found.append({"role": message["role"], "content": message["content"], **full})
    return found


def template_turn(message: Message) -> dict[str, Any]:
    """The turn as a chat template takes it."""
    turn = _more(message).get("turn")
    return turn or {"role": message["role"], "content": message["content"]}


def tools_in(messages: Sequence[Message]) -> list[dict[str, Any]] | None:
    """The tools that may be called in a conversation, as chat templates take them."""
    return next((more["tools"] for more in map(_more, messages) if "tools" in more), None)


def turns_text(messages: Sequence[Message]) -> str | None:
    """The turns as JSON, as :func:`conversation_of` reads them; null where all are plain."""
    turns = [template_turn(message) for message in messages]
    if all(turn.keys() <= _PLAIN for turn in turns):
        return None
    return json.dumps(turns, ensure_ascii=False)


def plain(messages: Sequence[Message]) -> list[dict[str, str]]:
    """The turns as they are read: role and content alone."""
    return [{"role": message["role"], "content": message["content"]} for message in messages]


def with_system_prompt(
    messages: Sequence[Message], system_prompt: str | None
) -> tuple[Message, ...]:
    """``messages``, led by ``system_prompt`` unless they have a system message of their own."""
    if system_prompt and messages[0]["role"] != "system":
        return ({"role": "system", "content": system_prompt}, *messages)
    return tuple(messages)


def conversation_text(messages: Sequence[Message]) -> str:
    """A conversation as one text: a single user turn as it is, more turns under role labels. The
    tools that may be called lead it."""
    tools = tools_in(messages)
    if tools is None and len(messages) == 1 and messages[0]["role"] == "user":
        return str(messages[0]["content"])
    parts = [f"[{turn['role']}]\n{turn['content']}" for turn in messages]
    if tools is not None:
        parts.insert(0, f"[tools]\n{json.dumps(tools, ensure_ascii=False)}")
    return "\n\n".join(parts)


def characters_of(messages: Sequence[Message]) -> str:
    """All that a conversation says, in one piece: for counting, not for reading."""
    said = "".join(message["content"] for message in messages)
    tools = tools_in(messages)
    return said if tools is None else said + json.dumps(tools, ensure_ascii=False)


def _more(message: Message) -> dict[str, Any]:
    full = message.get(FULL)
    return json.loads(full) if full else {}
