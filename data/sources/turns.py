"""Turns of a conversation as they are found: who speaks, what is said, and what can be wrong.

A conversation is a list of turns, one turn, a transcript (HH's or HelpSteer's), or either of the
first two written out as text, as CSV files hold them. Prompts and preferences read them alike.
"""

from __future__ import annotations

import json
import re
from itertools import pairwise
from typing import Any

from prefloop.data.sources.written import could_be_written, written_turns
from prefloop.data.utf8 import is_null_word, shown

ROLES = {
    "system": "system", "developer": "system",
    "user": "user", "human": "user", "prompter": "user",
    "assistant": "assistant", "gpt": "assistant", "chatgpt": "assistant", "bot": "assistant",
    "model": "assistant",
    "tool": "tool",
}  # fmt: skip
"""What the world calls them, in lower case, and what we call them."""

Turn = dict[str, str]
"""``{"role": ..., "content": ...}``."""

_IMAGE_STARTS = (b"\x89PNG", b"\xff\xd8\xff", b"GIF8", b"RIFF", b"BM")
_SPACE = " \t\r\n\f\v"
_HEADER = r"(?m:^)<extra_id_[01]>(System|User|Assistant)\r?(?m:$)"
CONVERSATION_START = rf"^[{_SPACE}]*(?:Human:|\[|\{{|array\()"
"""How a text begins that may be a conversation, for Python's ``re`` and for RE2: white space is
ASCII's, because ``\\s`` means other characters in the one than in the other."""
HEADER_MARK = "<extra_id_"
"""What else a text has that may be a conversation: in the headers of HelpSteer's turns."""
_TRANSCRIPT = re.compile(rf"[{_SPACE}]*Human:")
_SPEAKER = re.compile("(Human|Assistant):")
_SENTINEL = re.compile(_HEADER)
"""The headers of HelpSteer's turns: the first turn, the user's, need not have one."""


class Unusable(Exception):
    """Why a row cannot be used; ends in a ``BadRow``, never leaves the readers."""

    def __init__(self, field: str, reason: str, detail: str) -> None:
        super().__init__(field, reason, detail)
        self.field, self.reason, self.detail = field, reason, detail


def conversation_in(value: Any, field: str) -> Any | None:
    """``value`` as turns still to be read (for ``tool_turns.turns_of``), or None where it is one
    text or none at all.

    Raises :class:`Unusable` for text that is a list of turns written out, but cannot be read.
    """
    if isinstance(value, list | dict):
        return value
    if not isinstance(value, str):
        return None
    if _TRANSCRIPT.match(value):
        return _transcript(value, field)
    if HEADER_MARK in value and _SENTINEL.search(value):
        return _under_headers(value, field)
    if not could_be_written(value):
        return None
    try:
        return written_turns(value)
    except ValueError as error:
        raise Unusable(field, "written_turns", str(error)) from None


def refuse_null_word(value: str, field: str) -> None:
    """Raise :class:`Unusable` for a prompt that is a word for a missing value, and no more."""
    if is_null_word(value):
        raise Unusable(
            field,
            "null",
            f"is the word {value.strip()!r}, which programs write for a missing value: write the "
            "prompt, or delete the row",
        )


def refuse_texts(value: str, field: str) -> None:
    """Raise :class:`Unusable` for a prompt that is a list of texts written out as JSON: which are
    whose turns is not said."""
    if not value.lstrip(_SPACE).startswith("["):
        return
    try:
        found = json.loads(value)
    except (ValueError, RecursionError):
        return
    texts = isinstance(found, list) and all(isinstance(one, str | None) for one in found)
    if texts and any(found):
        raise Unusable(
            field,
            "written_turns",
            f"is a list of {len(found)} texts written out: write the turns as {{role, content}}, "
            "or the one text alone",
        )


def read_turn(turn: Any, field: str, number: int) -> tuple[str, str]:
    """Role and content of ``turn``, the ``number``-th of the column ``field``.

    It is ``{role, content}`` or ``{from, value}``; a table of both kinds has null for the keys of
    the other one.
    """
    if not isinstance(turn, dict):
        raise Unusable(
            field, "bad_messages", f"turn {number} is no object: write {{role, content}}"
        )
    said = _either(turn, ("role", "from"), field, number)
    role = ROLES.get(said.strip().lower()) if isinstance(said, str) else None
    if role is None:
        raise Unusable(
            field,
            "bad_messages",
            f"turn {number} has the role {shown(repr(said)[:80])}: use system, user or assistant",
        )
    content = text_of(_either(turn, ("content", "value"), field, number), field, f"turn {number} ")
    if content is None and role == "system":
        return role, ""
    if not isinstance(content, str):
        raise Unusable(
            field,
            "bad_messages",
            f"turn {number} has content of type {type(content).__name__}: write one string",
        )
    return role, content


def text_of(content: Any, field: str, which: str) -> Any:
    """``content`` with the parts of a text (``{type: text, text}``) put together. What is no list
    of parts is given back as it is. Raises :class:`Unusable` for images, sound and other parts.
    ``which`` begins the error."""
    parts = content if isinstance(content, list) else [content]
    if not parts or not all(isinstance(part, dict) and "type" in part for part in parts):
        refuse_image(content, field, which)
        return content
    for part in parts:
        refuse_image(part, field, which)
        if part["type"] != "text" or not isinstance(part.get("text"), str):
            raise Unusable(
                field,
                "bad_messages",
                f"{which}has a part of type {shown(repr(part['type']))[:80]}: write its text",
            )
    return "".join(part["text"] for part in parts)


def refuse_image(value: Any, field: str, which: str) -> None:
    """Raise :class:`Unusable` where ``value`` is an image, or a list that holds one."""
    if any(map(is_image, value if isinstance(value, list) else [value])):
        raise Unusable(
            field,
            "images",
            f"{which}is or holds an image, and prefloop reads text only: leave such rows out",
        )


def is_image(value: Any) -> bool:
    """Whether ``value`` is an image: one that `datasets` decoded or not, or a part of a turn."""
    if isinstance(value, dict):
        kind = value.get("type")
        named = isinstance(kind, str) and kind.startswith("image")
        return named or value.keys() == {"bytes", "path"}
    if isinstance(value, bytes):
        return value.startswith(_IMAGE_STARTS)
    return type(value).__module__.partition(".")[0] == "PIL"


def _either(turn: dict[str, Any], keys: tuple[str, str], field: str, number: int) -> Any:
    """The value of the key that is not null. Two that differ could both be meant."""
    one, other = (turn.get(key) for key in keys)
    if one is None or other is None or one == other:
        return other if one is None else one
    both = [ROLES.get(each.strip().lower()) for each in (one, other) if isinstance(each, str)]
    if keys[0] == "role" and len(both) == 2 and both[0] is not None and both[0] == both[1]:
        return one
    raise Unusable(
        field,
        "bad_messages",
        f"turn {number} has both {keys[0]!r} and {keys[1]!r}, and they differ: delete one",
    )


def _transcript(text: str, field: str) -> list[Turn]:
    """The turns of ``\\n\\nHuman: ...\\n\\nAssistant: ...``, each without white space around it.

    A turn begins where a speaker's name begins the text or follows an empty line; where that gives
    one turn alone, also where it begins a line. Raises :class:`Unusable` where the speakers then do
    not take turns, so that lines may be turns or quoted ones.
    """
    turns = _spoken(text, "\n\n")
    if len(turns) > 1:
        return turns
    return _taking_turns(_spoken(text, "\n"), field, "without empty lines between its turns")


def _under_headers(text: str, field: str) -> list[Turn]:
    """The turns of a transcript of HelpSteer's, ``...\\n<extra_id_1>Assistant\\n...``, each without
    white space around it. Raises :class:`Unusable` where a speaker has two in a row."""
    first, *rest = _SENTINEL.split(text)
    turns: list[Turn] = [] if not first.strip() else [{"role": "user", "content": first.strip()}]
    for name, said in zip(rest[::2], rest[1::2], strict=True):
        turns.append({"role": name.lower(), "content": said.strip()})
    return _taking_turns(turns, field, "with <extra_id_1>")


def _taking_turns(turns: list[Turn], field: str, kind: str) -> list[Turn]:
    if any(one["role"] == following["role"] for one, following in pairwise(turns)):
        raise Unusable(
            field,
            "bad_messages",
            f"is a transcript {kind}, and one speaker has two in a row: write {{role, content}} "
            "turns",
        )
    return turns


def _spoken(text: str, between: str) -> list[Turn]:
    """The turns of a transcript that has ``between``, among other white space, before each but the
    first."""
    turns: list[Turn] = []
    start = 0
    for match in _SPEAKER.finditer(text):
        gap = match.start()
        while gap and text[gap - 1] in _SPACE:
            gap -= 1
        if gap and between not in text[gap : match.start()].replace("\r\n", "\n"):
            continue
        if turns:
            turns[-1]["content"] = text[start:gap].strip()
        role = "user" if match.group(1) == "Human" else "assistant"
        turns.append({"role": role, "content": ""})
        start = match.end()
    turns[-1]["content"] = text[start:].strip()
    return turns
