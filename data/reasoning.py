"""A model's thought apart from its answer: one place that knows how models mark the two.

Models write their thoughts between marks of their own: tags (``<think>``), ``[THINK]``,
``◁think▷``, ``<|START_THINKING|>``, ``<unused94>thought``, the channels of harmony. A template may
have opened the thought already, so that what the model writes begins within it. A mark counts where
a thought can stand, in front of the answer; in quotes or further behind it is a word about
thoughts.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

_NAMES = r"(?:\w+:)?(?:think|thinking|thoughts?)"
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
# Harmony without its special tokens; no sentence goes on like this behind "analysis".
BARE_BEGIN, BARE_END = re.compile(r"\s*analysis(?=[A-Z\"])"), re.compile(r"assistantfinal")
_HARMONY_END = re.compile(r"<\|(?:return|end)\|>\s*\Z")
_HARMONY_FINAL = re.compile(rf"\s*(?:<\|start\|>\s*assistant\s*)?{_FINAL}", re.IGNORECASE)
_HARMONY_HEAD = re.compile(r"\A(?:[^<\n]{0,80}<\|message\|>)")
_HARMONY_TAIL = re.compile(r"<\|end\|>\s*(?:<\|start\|>\s*assistant\s*)?\Z")
_CLOSED_BY = (
    (r"<\s*([\w:]+)[^<>|]*>", r"</\1>"),
    (r"\[\s*(\w+)\s*\]", r"[/\1]"),
    (r"◁\s*(\w+)\s*▷", r"◁/\1▷"),
    (r"<\|begin_of_thought\|>", "<|end_of_thought|>"),
    (r"<\|START_THINKING\|>", "<|END_THINKING|>"),
    (r"<unused94>thought", "<unused95>"),
)
_QUOTES = "\"'`"
_BEFORE_QUOTES = f"([{{:={_QUOTES}"
_CONTROL = re.compile(
    r"<\|(?:channel|message|start|end|return|call|constrain)\|>|<\|channel>|<channel\|>",
    re.IGNORECASE,
)


def tag_marks(names: str) -> tuple[str, str]:
    """Patterns of the tags around a thought, of one of these ``names`` (a pattern too)."""
    return rf"<\s*({names})(?:\s[^<>]{{0,200}})?(?<!/)>", rf"<\s*/\s*({names})\s*>"


_PATTERNS = [
    tuple(re.compile(mark, re.IGNORECASE) for mark in marks)
    for marks in (tag_marks(_NAMES), *OTHER_MARKS)
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
    within = _Begin(0, 0) if opened else _begin(text, 0)
    if within is None and opened is None:
        within = _Begin(0, 0) if _is_closed_only(text) else None
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
        if final := _HARMONY_FINAL.match(text):
            return Thought(None, _without_end(text[final.end() :]), begins=final.end())
        return Thought(None, text)
    rest = text[place:]
    stripped = rest.lstrip()
    begins = len(text) - len(stripped)
    return Thought("\n\n".join(filter(None, parts)), _without_end(stripped), begins=begins)


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


def is_quoted(before: str, behind: str) -> bool:
    """Whether a mark between these, two characters on each side, is in quotes and so a word about
    thoughts: one that begins, and the same one that ends. A thought that ends in a quotation may
    come before an answer that begins with one."""
    quote = before[-1:]
    if not quote or quote not in _QUOTES or behind[:1] != quote:
        return False
    begins = len(before) < 2 or before[0].isspace() or before[0] in _BEFORE_QUOTES
    return begins and not behind[1:].isalnum()


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
        if found := begin.match(text, at):
            return _Begin(kind, found.end(), found[1].lower())
    if place == 0 and (bare := BARE_BEGIN.match(text)):
        return _Begin(-1, bare.end(), "")
    return None


def _end(text: str, begin: _Begin) -> tuple[int, int] | None:
    """Where the thought that ``begin`` opened ends, and the mark does."""
    if begin.kind == -1:
        found = BARE_END.search(text, begin.end)
        return found.span() if found else None
    if begin.name is not None:
        return _closing(begin.kind, text, begin.end, begin.name)
    ends = (_closing(kind, text, begin.end) for kind in range(len(_PATTERNS)))
    return min(filter(None, ends), default=None)


def _closing(kind: int, text: str, place: int, name: str | None = None) -> tuple[int, int] | None:
    """The first closing mark behind ``place`` that does not stand in quotes."""
    for found in _PATTERNS[kind][1].finditer(text, place):
        start, end = found.span()
        if is_quoted(text[max(place, start - 2) : start], text[end : end + 2]):
            continue
        if name is None or found[1].lower() == name:
            return start, end
    return None


def _is_closed_only(text: str) -> bool:
    """Whether a thought is closed in ``text`` that nothing in it opened (harmony always opens)."""
    for kind, (begin, _) in enumerate(_PATTERNS[:-1]):
        end = _closing(kind, text, 0)
        if end is not None and not begin.search(text, 0, end[0]):
            return True
    return False


def _bare(thought: str) -> str:
    """``thought`` without what harmony writes around it, and without white space at its ends."""
    return _HARMONY_TAIL.sub("", _HARMONY_HEAD.sub("", thought)).strip()


def _without_end(answer: str) -> str:
    return _HARMONY_END.sub("", answer)
