"""A model's thought apart from its answer: one place that knows how models mark the two.

Models write their thoughts between marks of their own: tags (``<think>``), ``[THINK]``,
``◁think▷``, ``<|START_THINKING|>``, ``<unused94>thought``, the channels of harmony. A template may
have opened the thought already, so that what the model writes begins within it. A mark counts where
a thought can stand, in front of the answer; in quotes or further behind it is a word about
thoughts.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from prefloop.data.conversations.harmony import HARMONY_END, HARMONY_HEAD, HARMONY_TAIL, heard_in
from prefloop.data.conversations.quoted_marks import is_quoted

_NAMES = r"(?:\w+:)?(?:think|thinking|thoughts?|longcat_think)"
_FINAL = r"<\|channel\|>\s*final\b[^<\n]{0,80}<\|message\|>"
OTHER_MARKS: tuple[tuple[str, str], ...] = (
    (r"\[\s*(think|thinking)\s*\]", r"\[\s*/\s*(think|thinking)\s*\]"),
    (r"◁\s*(\w+)\s*▷", r"◁\s*/\s*(\w+)\s*▷"),
    (r"<\|begin_of_(thought)\|>", r"<\|end_of_(thought)\|>"),
    (r"<\|start_(thinking)\|>", r"<\|end_(thinking)\|>"),
    (r"<unused94>(?:thought\n)?()", r"<unused95>()"),
    (r"<\|channel>\s*thought\b()", r"<channel\|>()"),
    (r"<\|channel\|>\s*(?:analysis|commentary)\b()", rf"{_FINAL}()"),
)
"""How thoughts begin and end, but for tags; the group is what has to be the same in both."""
_LABELS: tuple[tuple[str, str], ...] = (
    (r"here are my reasoning steps:()", r"\[BEGIN FINAL RESPONSE\]()"),
    (r"here(?:'s| is) my thought process:()", r"^here(?:'s| is) my response:()"),
)
"""The same in words that anybody may write: they open a thought where it is closed as well."""
BARE_END = re.compile(r"assistantfinal")
"""What ends a thought of harmony without its special tokens."""
# No sentence goes on like this behind "analysis".
_BARE_BEGIN, _BARE_WORD = re.compile(r"\s*analysis(?=[A-Z\"])"), re.compile(r"\s*analysis")
_WRAPPED = (
    ("<|START_RESPONSE|>", "<|END_RESPONSE|>"),
    ("<|begin_of_solution|>", "<|end_of_solution|>"),
    ("<response>", "</response>"),
)
"""What models write around the answer behind a thought."""
_END_OF_ANSWER = re.compile(r"\s*\[END FINAL RESPONSE\]\s*(?:<\|end\|>\s*)?\Z")
_MOST_CLOSINGS = 100
"""Closing marks behind the first that are looked at."""
_CLOSED_BY = (
    (r"<\s*([\w:]+)[^<>|]*>", r"</\1>"),
    (r"\[\s*(\w+)\s*\]", r"[/\1]"),
    (r"◁\s*(\w+)\s*▷", r"◁/\1▷"),
    (r"<\|begin_of_thought\|>", "<|end_of_thought|>"),
    (r"<\|START_THINKING\|>", "<|END_THINKING|>"),
    (r"<unused94>thought", "<unused95>"),
    (r"here are my reasoning steps:", "[BEGIN FINAL RESPONSE]"),
)
_CONTROL = re.compile(
    r"<\|(?:channel|message|start|end|return|call|constrain)\|>|<\|channel>|<channel\|>",
    re.IGNORECASE,
)


def tag_marks(names: str) -> tuple[str, str]:
    """Patterns of the tags around a thought, of one of these ``names`` (a pattern too)."""
    return rf"<\s*({names})(?:\s[^<>]{{0,200}})?(?<!/)>", rf"<\s*/\s*({names})\s*>"


_PATTERNS = [
    tuple(re.compile(mark, re.IGNORECASE | re.MULTILINE) for mark in marks)
    for marks in (*_LABELS, tag_marks(_NAMES), *OTHER_MARKS)
]


@dataclass(frozen=True, slots=True)
class Thought:
    """What a model wrote, taken apart.

    ``reasoning``: the thought without its marks; null where there is none. ``answer``: what stands
    behind it, without the white space in front. ``closed``: false where the text ends within the
    thought. ``begins``: how many characters of the text stand before the answer.
    """

    reasoning: str | None
    answer: str
    closed: bool = True
    begins: int = 0


def split_thought(text: str, opened: bool | None = False) -> Thought:
    """``text`` of a model as thought and answer.

    ``opened``: whether the prompt ended within a thought; null where nobody knows (a server
    rendered it). Then a closing mark without an opening one says that it did.
    """
    if not opened and (heard := heard_in(text)) is not None:
        return Thought(heard.thought, heard.answer, heard.is_answered, heard.begins)
    within = _Begin(0, 0) if opened else _begin(text, 0)
    if within is None and (_is_closed_at_once(text) or (opened is None and _is_closed_only(text))):
        within = _Begin(0, 0)
    parts: list[str] = []
    place = 0
    while within is not None:
        if opened and not parts and (repeated := _begin(text, 0)) is not None:
            within = repeated  # some models write the mark that the template wrote already
        end = _end(text, within)
        if end is None:
            parts.append(_bare(text[within.end :]))
            return Thought("\n\n".join(filter(None, parts)), "", False, len(text))
        parts.append(_bare(text[within.end : end[0]]))
        place = end[1]
        within = _begin(text, place)
    if not parts:
        return Thought(None, text)
    place = _unwrapped(text, place)
    answer = text[place:].lstrip()
    begins = len(text) - len(answer)
    return Thought("\n\n".join(filter(None, parts)), _without_end(answer), begins=begins)


def answer_alone(text: str) -> str:
    """``text``, which somebody has, without the thought before it."""
    return split_thought(text, opened=None).answer


def opened_by(prompt: str) -> str:
    """The mark, and what follows it, with which the end of a rendered ``prompt`` opens a thought;
    empty where it opens none."""
    last: re.Match[str] | None = None
    for begin, end in _PATTERNS:
        for found in begin.finditer(prompt):
            if (last is None or found.start() > last.start()) and not end.search(
                prompt, found.end()
            ):
                last = found
    if last is None or prompt[last.end() :].strip():
        return ""
    return prompt[last.start() :]


def closing_of(opening: str) -> str:
    """What ends at once the thought that ``opening`` began, blank lines and all."""
    mark = opening.strip()
    for begin, end in _CLOSED_BY:
        if found := re.fullmatch(begin, mark, re.IGNORECASE):
            return f"\n{found.expand(end)}\n\n"
    return ""


def is_mark(token: str) -> bool:
    """Whether a special token of a vocabulary is (part of) a mark around thoughts."""
    return bool(_CONTROL.fullmatch(token)) or any(
        pattern.fullmatch(token) for marks in _PATTERNS for pattern in marks
    )


def as_turn(reasoning: str, answer: str) -> str:
    """Thought and answer as one text, in the form that most chat templates know."""
    return f"<think>\n{reasoning.strip()}\n</think>\n\n{answer}"


@dataclass(frozen=True, slots=True)
class _Begin:
    kind: int
    end: int
    name: str | None = None
    """Null: the template wrote the mark, and any closing one ends the thought."""


def _begin(text: str, place: int) -> _Begin | None:
    """The mark that opens a thought at ``place``, white space aside."""
    rest = re.compile(r"\s*(?:<\|start\|>\s*assistant\s*)?").match(text, place)
    at = rest.end() if rest else place
    for kind, (begin, _) in enumerate(_PATTERNS):
        if (found := begin.match(text, at)) and (
            kind >= len(_LABELS) or _closing(kind, text, found.end())
        ):
            return _Begin(kind, found.end(), found[1].lower())
    if place == 0 and (bare := bare_begin(text)):
        return _Begin(-1, bare.end(), "")
    return None


def bare_begin(text: str) -> re.Match[str] | None:
    """How ``text`` opens a thought in harmony without its special tokens."""
    if (found := _BARE_BEGIN.match(text)) or not _BARE_WORD.match(text):
        return found
    return _BARE_WORD.match(text) if BARE_END.search(text) else None


def _end(text: str, begin: _Begin) -> tuple[int, int] | None:
    """Where the thought that ``begin`` opened ends, and the mark does."""
    if begin.kind == -1:
        found = BARE_END.search(text, begin.end)
        return found.span() if found else None
    if begin.name is not None:
        end = _closing(begin.kind, text, begin.end, begin.name)
        return end and _last_end(begin.kind, text, begin.end, end)
    ends = [
        (end, kind)
        for kind in range(len(_PATTERNS))
        if (end := _closing(kind, text, begin.end)) is not None
    ]
    if not ends:
        return None
    end, kind = min(ends)
    return _last_end(kind, text, begin.end, end)


def _last_end(kind: int, text: str, place: int, end: tuple[int, int]) -> tuple[int, int]:
    """Where a thought from ``place`` on ends whose first closing mark is at ``end``. Each thought
    that was opened within it has an end of its own, and some models close one, think on, and close
    it once more, on a line of its own."""
    last, looked = end, 0
    open_yet = len([*_openings(kind, text, place, end[0])])
    while looked < _MOST_CLOSINGS and (found := _closing(kind, text, last[1])):
        inner = len([*_openings(kind, text, last[1], found[0])])
        looked += 1
        if open_yet:
            open_yet += inner - 1
            last = found
            if not open_yet:
                end = last
        elif not inner and _stands_alone(text, last[1], found):
            end = last = found
        else:
            break
    return end


def _openings(kind: int, text: str, place: int, stop: int) -> Iterator[re.Match[str]]:
    """The marks that open a thought between two places, and do not stand in quotes."""
    for found in _PATTERNS[kind][0].finditer(text, place, stop):
        start, end = found.span()
        if not is_quoted(text[max(0, start - 2) : start], text[end : end + 2]):
            yield found


def _stands_alone(text: str, place: int, mark: tuple[int, int]) -> bool:
    """Whether ``mark`` is all of a line, in no block of code that began behind ``place``, and has
    something behind it."""
    before, behind = text[place : mark[0]].rstrip(" \t"), text[mark[1] :].lstrip(" \t")
    is_line = before.endswith("\n") and behind.startswith("\n")
    return is_line and bool(behind.strip()) and before.count("```") % 2 == 0


def _closing(kind: int, text: str, place: int, name: str | None = None) -> tuple[int, int] | None:
    """The first closing mark behind ``place`` that does not stand in quotes."""
    for found in _PATTERNS[kind][1].finditer(text, place):
        start, end = found.span()
        if is_quoted(text[max(place, start - 2) : start], text[end : end + 2]):
            continue
        if name is None or found[1].lower() == name:
            return start, end
    return None


def _is_closed_at_once(text: str) -> bool:
    """Whether ``text`` begins with the end of a thought, before an answer: of one that the prompt
    opened, or that the model left out."""
    at = len(text) - len(text.lstrip())
    ends = (end.match(text, at) for _, end in _PATTERNS[len(_LABELS) : -1])
    return any(found and text[found.end() :].strip() for found in ends)


def _is_closed_only(text: str) -> bool:
    """Whether a thought is closed in ``text`` that nothing in it opened (harmony always opens)."""
    for kind, (begin, _) in enumerate(_PATTERNS[:-1]):
        if begin.pattern == _LABELS[1][0]:  # its end is a sentence like any other
            continue
        end = _closing(kind, text, 0)
        if end is not None and not begin.search(text, 0, end[0]):
            return True
    return False


def _bare(thought: str) -> str:
    """``thought`` without what harmony writes around it, and without white space at its ends."""
    return HARMONY_TAIL.sub("", HARMONY_HEAD.sub("", thought)).strip()


def _unwrapped(text: str, place: int) -> int:
    """Where the answer begins from ``place`` on, behind what models write in front of it."""
    at = len(text) - len(text[place:].lstrip())
    for begin, end in _WRAPPED:
        if text.startswith(begin, at):
            closed = text.find(end, at)
            return at + len(begin) if closed < 0 or not text[closed + len(end) :].strip() else place
    return place


def _without_end(answer: str) -> str:
    """``answer`` without what models write behind one."""
    bare = answer.rstrip()
    for begin, end in _WRAPPED:
        if bare.endswith(end) and begin not in bare:
            return bare.removesuffix(end).rstrip()
    return HARMONY_END.sub("", _END_OF_ANSWER.sub("", answer))
