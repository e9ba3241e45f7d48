"""A chain of thought in a judge's answer: what is thought is no verdict, and is never read.

Models and servers mark thoughts in many ways, of which these are known: tags (``<think>``,
``<reasoning>``, ``[THINK]``, ``◁think▷`` and others), the channels of harmony (also where its
special tokens were left out of the text), ``<|begin_of_thought|>``, ``<|START_THINKING|>`` and
``<unused94>thought``.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

_NAMES = (
    r"(?:\w+:)?(?:think|thinking|thoughts?|thought[_-]process|reason|reasoning|reflection"
    r"|scratch[_-]?pad|analysis|ant-?thinking|inner[_-]monologue|chain[_-]of[_-]thought|cot)"
)
_FINAL = r"<\|channel\|>\s*final\b[^<\n]{0,80}<\|message\|>"
_MARKS: tuple[tuple[str, str], ...] = (
    (rf"<\s*({_NAMES})(?:\s[^<>]{{0,200}})?(?<!/)>", rf"<\s*/\s*({_NAMES})\s*>"),
    (r"\[\s*(think|thinking)\s*\]", r"\[\s*/\s*(think|thinking)\s*\]"),
    (r"◁\s*(\w+)\s*▷", r"◁\s*/\s*(\w+)\s*▷"),
    (r"<\|begin_of_(thought)\|>", r"<\|end_of_(thought)\|>"),
    (r"<\|start_(thinking)\|>", r"<\|end_(thinking)\|>"),
    (r"<unused94>()", r"<unused95>()"),
    (r"<\|channel>\s*thought\b()", r"<channel\|>()"),
    (r"<\|channel\|>\s*(?:analysis|commentary)\b()", rf"{_FINAL}()"),
)
"""How thoughts begin and end; the group is what has to be the same in both."""
_PATTERNS = [tuple(re.compile(mark, re.IGNORECASE) for mark in marks) for marks in _MARKS]
# Harmony without its special tokens; no sentence goes on like this behind "analysis".
_BARE_BEGIN, _BARE_END = re.compile(r"\s*analysis(?=[A-Z\"])"), re.compile(r"assistantfinal")
_HARMONY_END = re.compile(r"<\|(?:return|end)\|>\s*\Z")


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
                if not (
                    start and text[start - 1] in "\"'`" and text[end : end + 1] == text[start - 1]
                ):
                    yield _Mark(start, end, f"{number}{found[1].lower()}", begins)
    bare = _BARE_BEGIN.match(text)
    if bare:
        yield _Mark(0, bare.end(), "bare", True)
        for found in _BARE_END.finditer(text):
            yield _Mark(*found.span(), "bare", False)
