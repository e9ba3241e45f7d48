"""Where the answer to judge begins in a conversation, and what makes it or its prompt none."""

from __future__ import annotations

from typing import Any

from prefloop.data.conversations.reasoning import as_turn, split_thought
from prefloop.data.sources.turns import Unusable
from prefloop.data.utf8 import is_blank, is_text

WholeTurn = dict[str, Any]
"""A turn of ``tool_turns.full_turns``."""


def split_answer(turns: list[WholeTurn], field: str) -> tuple[list[WholeTurn], str]:
    """What comes before the assistant's turn at the end, and that turn's text, behind the thought
    that it came with.

    Raises :class:`Unusable` where there is none, or where several follow each other: whether they
    are one answer, or the first belongs to the prompt, only the data's author knows.
    """
    roles = [turn["role"] for turn in turns]
    if roles[-1:] != ["assistant"]:
        raise Unusable(field, "bad_messages", "the last turn must be the assistant's: mend the row")
    if roles[-2:] == ["assistant", "assistant"]:
        raise Unusable(
            field,
            "consecutive_answers",
            "the last two turns are both the assistant's: join them, or delete one",
        )
    before = turns[:-1]
    answer = check_answer(turns[-1]["content"], field)
    thought = turns[-1].get("thought")
    if thought is not None and split_thought(answer, opened=None).reasoning is None:
        check_unicode(thought, field)
        answer = as_turn(thought, answer)
    return check_prompt(before, field) if before else [], answer


def check_prompt(turns: list[WholeTurn], field: str) -> list[WholeTurn]:
    """``turns`` if an assistant can answer them. Raises :class:`Unusable`."""
    for number, turn in enumerate(turns, 1):
        if turn["role"] != "tool" and is_blank(turn["content"]):  # a tool may give nothing back
            raise Unusable(field, "empty", f"turn {number} of the prompt holds no text: fill it in")
        check_unicode(turn["content"], field)
    if not turns or turns[-1]["role"] not in ("user", "tool"):
        raise Unusable(field, "bad_messages", "the prompt must end with the user's turn")
    return turns


def check_answer(text: str, field: str) -> str:
    """``text`` if it is an answer. Raises :class:`Unusable`."""
    if is_blank(text):
        raise Unusable(field, "empty_answer", "the answer holds no text: delete the row")
    check_unicode(text, field)
    return text


def check_unicode(text: str, field: str) -> None:
    """Raise :class:`Unusable` for a text with bytes or escapes that stand for no character."""
    if not is_text(text):
        raise Unusable(
            field, "not_utf8", "holds bytes or escapes that are no Unicode text: mend it"
        )
