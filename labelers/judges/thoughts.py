"""A chain of thought in a judge's answer: what is thought is no verdict, and is never read.

Engines take a model's own thought off its answer (``prefloop.data.conversations.reasoning``). A
judge also writes thoughts of other forms, where its prompt asks for them (``<scratchpad>``,
``<analysis>``), and may do so anywhere in its answer.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from prefloop.data.conversations.quoted_marks import is_quoted
from prefloop.data.conversations.reasoning import BARE_END, OTHER_MARKS, bare_begin, tag_marks

_NAMES = (
    r"(?:\w+:)?(?:think|thinking|thoughts?|thought[_-]process|reason|reasoning|reflection"
    r"|scratch[_-]?pad|analysis|ant-?thinking|inner[_-]monologue|chain[_-]of[_-]thought|cot|longcat_think)"
)
_PATTERNS = [
    tuple(re.compile(mark, re.IGNORECASE) for mark in marks)
    for marks in (tag_marks(_NAMES), *OTHER_MARKS)
]
_HARMONY_END = re.compile(r"<\|(?:return|end)\|>\s*\Z")


NO_ANSWER = (
    "the judge was still thinking when its tokens ended: there is no verdict (raise the labeler's "
    "thought_tokens, or ask it not to think: chat_template_kwargs)"
)
"""Why there is no verdict where a judge thought and said nothing."""


class UnfinishedThought(ValueError):
    """The answer ends within a thought: the verdict was never given."""


@dataclass(frozen=True, slots=True)
class _Mark:
    start: int
    end: int
    kind: str
    begins: bool


def without_thought(text: str) -> str:
    """``text`` without its chains of thought.

    Where the prompt's template opened the thought, there is a closing mark alone: all before the
    first is the thought. A mark in quotes or backticks is a word about thoughts. Raises
    :class:`UnfinishedThought` for a thought that is not closed.
    """
    kept: list[str] = []
    closed: set[str] = set()
    within: str | None = None
    place = 0
    for mark in sorted(_marks(text), key=lambda one: one.start):
        if within is not None:
            if mark.begins or mark.kind != within:
                continue
            within = None
        elif mark.start < place:
            continue
        elif mark.begins:
            kept.append(text[place : mark.start])
            within = mark.kind
            continue
        elif mark.kind in closed:
            continue
        else:
            kept = []
        closed.add(mark.kind)
        place = mark.end
    if within is not None:
        raise UnfinishedThought("the answer ends within an unfinished thought: there is no verdict")
    return _HARMONY_END.sub("", "".join([*kept, text[place:]])).strip()


def _marks(text: str) -> Iterator[_Mark]:
    for number, patterns in enumerate(_PATTERNS):
        for pattern, begins in zip(patterns, (True, False), strict=True):
            for found in pattern.finditer(text):
                start, end = found.span()
                if not is_quoted(text[max(0, start - 2) : start], text[end : end + 2]):
                    yield _Mark(start, end, f"{number}{found[1].lower()}", begins)
    bare = bare_begin(text)
    if bare:
        yield _Mark(0, bare.end(), "bare", True)
        for found in BARE_END.finditer(text):
            yield _Mark(*found.span(), "bare", False)
