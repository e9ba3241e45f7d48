"""Messages in harmony, the form of gpt-oss: channels of thoughts, answers and calls of tools."""

from __future__ import annotations

import json
import re
from contextlib import suppress
from dataclasses import dataclass

from prefloop.data.conversations.quoted_marks import is_quoted

_BEGIN = re.compile(
    r"\s*(?:<\|start\|>\s*assistant\b|<\|channel\|>|to=[^\s<]{1,200}\s*<\|channel\|>)",
    re.IGNORECASE,
)
_MARK = re.compile(r"<\|(start|channel|message|end|call|return)\|>", re.IGNORECASE)
_CHANNEL = re.compile(r"<\|channel\|>\s*(\w+)", re.IGNORECASE)
_RECIPIENT = re.compile(r"\bto=([^\s<]+)")
HARMONY_END = re.compile(r"<\|(?:return|end)\|>\s*\Z")
HARMONY_HEAD = re.compile(r"\A(?:[^<\n]{0,80}<\|message\|>)")
HARMONY_TAIL = re.compile(r"<\|end\|>\s*(?:<\|start\|>\s*assistant\s*)?\Z")


@dataclass(frozen=True, slots=True)
class Heard:
    """What a model wrote in harmony.

    ``thought``: its analyses and what it says before it calls a tool, null where there are none;
    ``answer``: its final message, or the tools that it calls as JSON, a list of ``{name,
    arguments}``; ``begins``: how many characters stand before that.
    """

    thought: str | None
    answer: str
    is_answered: bool
    begins: int


@dataclass(frozen=True, slots=True)
class _Said:
    channel: str
    recipient: str | None
    text: str
    begins: int


def heard_in(text: str) -> Heard | None:
    """What ``text`` says in harmony; null where it is written in another form."""
    if not _BEGIN.match(text):
        return None
    said = _messages(text)
    if not said:
        return None
    thoughts = [one.text.strip() for one in said if one.channel != "final" and not one.recipient]
    thought = "\n\n".join(filter(None, thoughts)) if thoughts else None
    final = next((one for one in said if one.channel == "final"), None)
    if final is not None:
        begins = final.begins + len(final.text) - len(final.text.lstrip())
        return Heard(thought, final.text.lstrip(), True, begins)
    calls = [one for one in said if one.recipient and one.text.strip()]
    if calls:
        return Heard(thought, _as_json(calls), True, calls[0].begins)
    return Heard(thought or "", "", False, len(text))


def _messages(text: str) -> list[_Said]:
    found: list[_Said] = []
    head, body = 0, -1
    for mark in _MARK.finditer(text):
        name, (start, end) = mark[1].lower(), mark.span()
        if body < 0:
            body = end if name == "message" else body
            continue
        if name == "message" or is_quoted(text[max(0, start - 2) : start], text[end : end + 2]):
            continue
        found.append(_said(text[head:body], text[body:start], body))
        head, body = start, -1
    if body >= 0:
        found.append(_said(text[head:body], text[body:], body))
    return found


def _said(head: str, text: str, begins: int) -> _Said:
    channel, recipient = _CHANNEL.search(head), _RECIPIENT.search(head)
    # A message without a channel is for the user.
    name = channel[1].lower() if channel else "final"
    return _Said(name, recipient[1] if recipient else None, text, begins)


def _as_json(calls: list[_Said]) -> str:
    made = []
    for call in calls:
        arguments: object = call.text.strip()
        with suppress(ValueError, RecursionError):  # a model may write what is no JSON
            arguments = json.loads(call.text)
        made.append({"name": (call.recipient or "").removeprefix("functions."),
                     "arguments": arguments})  # fmt: skip
    return json.dumps(made, ensure_ascii=False)
