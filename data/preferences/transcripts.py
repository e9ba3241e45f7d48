"""Turns of conversations and transcripts, and where the answer to judge begins."""

from __future__ import annotations

import re
from typing import Any

from prefloop.data.sources.turns import Unusable, read_turn
from prefloop.data.utf8 import is_text

Turn = dict[str, str]
"""``{"role": ..., "content": ...}``."""

TRANSCRIPT_START = r"^\s*Human:"
"""How a transcript in the style of Anthropic's HH begins."""
_START = re.compile(TRANSCRIPT_START)
_SPEAKER = re.compile(r"(?:^|\n\n)\s*(Human|Assistant):")


def turns_of(value: Any, field: str) -> list[Turn]:
    """A column's conversation, its answer included, with roles as user, system and assistant.

    ``value`` is a list of ``{role, content}`` (or ``{from, value}``), one such object, or a
    transcript. A system turn without text is left out. Raises :class:`Unusable`.
    """
    if isinstance(value, str):
        return _transcript(value)
    turns = [value] if isinstance(value, dict) else value
    if not turns:
        raise Unusable(field, "empty", "the conversation has no turn: delete the row")
    found = (_turn(turn, field, number) for number, turn in enumerate(turns, 1))
    return [turn for turn in found if turn["role"] != "system" or turn["content"].strip()]


def is_conversation(value: Any) -> bool:
    """Whether ``value`` holds turns rather than one text."""
    if isinstance(value, str):
        return _START.match(value) is not None
    return isinstance(value, list | dict)


def split_answer(turns: list[Turn], field: str) -> tuple[list[Turn], str]:
    """What comes before the assistant's turns at the end, and these turns as one text (joined by
    a blank line where there are several). Raises :class:`Unusable` where there are none."""
    end = len(turns)
    while end and turns[end - 1]["role"] == "assistant":
        end -= 1
    if end == len(turns):
        raise Unusable(field, "bad_messages", "the last turn must be the assistant's: mend the row")
    answer = "\n\n".join(turn["content"] for turn in turns[end:])
    return check_prompt(turns[:end], field) if end else [], check_answer(answer, field)


def check_prompt(turns: list[Turn], field: str) -> list[Turn]:
    """``turns`` if an assistant can answer them. Raises :class:`Unusable`."""
    for number, turn in enumerate(turns, 1):
        if not turn["content"].strip():
            raise Unusable(field, "empty", f"turn {number} of the prompt holds no text: fill it in")
        _check_unicode(turn["content"], field)
    if not turns or turns[-1]["role"] != "user":
        raise Unusable(field, "bad_messages", "the prompt must end with the user's turn")
    return turns


def check_answer(text: str, field: str) -> str:
    """``text`` if it is an answer. Raises :class:`Unusable`."""
    if not text.strip():
        raise Unusable(field, "empty_answer", "the answer holds no text: delete the row")
    _check_unicode(text, field)
    return text


def _check_unicode(text: str, field: str) -> None:
    if not is_text(text):
        raise Unusable(
            field, "not_utf8", "holds bytes or escapes that are no Unicode text: mend it"
        )


def _turn(turn: Any, field: str, number: int) -> Turn:
    role, content = read_turn(turn, field, number)
    return {"role": role, "content": content}


def _transcript(text: str) -> list[Turn]:
    """The turns of ``\\n\\nHuman: ...\\n\\nAssistant: ...``, each without white space around it."""
    _, *parts = _SPEAKER.split(text)
    return [
        {"role": "user" if speaker == "Human" else "assistant", "content": content.strip()}
        for speaker, content in zip(parts[::2], parts[1::2], strict=True)
    ]
