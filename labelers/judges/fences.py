"""Fences around untrusted text in a judge's prompt.

A template marks off what is to be judged by tags (``<answer_a>``) or labels (``Answer A:``). Text
that is filled in may hold look-alikes, and so close its fence and speak for the template or for
another answer. It may also hold what a judge says itself: the end of a thought (``</think>``), a
verdict (``[[A]]``), a control token (``<|im_end|>``); quoted, they would pass for the judge's own.
All of them are made harmless: a tag or token loses its bracket, a label its colon, a verdict the
form in which verdicts are read.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from functools import lru_cache

from prefloop.data.conversations.control_tokens import break_control_tokens
from prefloop.labelers.judges.look_alikes import skeleton

_TAG = re.compile(r"</?([A-Za-z][\w-]*)(?:\s[^<>]*)?>")
_LABEL = re.compile(r"^([A-Za-z][\w -]*):[ \t]*\{\{", re.MULTILINE)  # such as "Answer A: {{"
# In a skeleton all that may stand inside a tag's name without a reader (or a model) being misled
# less is one space: white space, hyphens, underscores, and characters that print as nothing.
_FILLER = " ?"
_THOUGHTS = {
    "think", "thinking", "thought", "thoughts", "thought_process", "reason", "reasoning",
    "reflection", "scratchpad", "analysis", "antthinking", "inner_monologue", "chain_of_thought",
    "cot", "longcat_think",
}  # fmt: skip
"""Names of the tags between which models think."""
_ANY_WORD = "[^][]{1,40}"
_TRIANGLE = re.compile(r"◁(?=\s{0,20}/?\s{0,20}\w{1,40}\s{0,20}▷)")
_HARMONY_FINAL = "assistantfinal"
"""What ends a thought where harmony's tokens were left out of the text."""
_FINAL_RESPONSE = re.compile(r"\[(?=BEGIN FINAL RESPONSE\])", re.IGNORECASE)
"""What ends one in words."""


class Fences:
    """The fences of one template. Pure: the same text always comes out the same."""

    def __init__(
        self, template: str, names: Collection[str], verdicts: Collection[str] | None = ()
    ) -> None:
        """``template`` is the source; ``names`` are fenced as tags whether or not it uses them.

        ``verdicts`` are the words of which none may stand in double brackets; null: no word may.
        """
        tags, labels = {*names, *_TAG.findall(template)}, set(_LABEL.findall(template))
        words = _ANY_WORD if verdicts is None else _either(verdicts)
        self._pattern = _pattern(tags, labels, words)
        # An answer stands in several pairs, and in both orders, one soon after the other.
        self._known = lru_cache(maxsize=128)(self._harmless)

    def harmless(self, text: str) -> str:
        """``text`` without anything that reads as one of the fences, as the beginning or end of a
        thought, as a verdict, or as a control token."""
        return self._known(text)

    def _harmless(self, text: str) -> str:
        seen, places = skeleton(text)
        letters: list[str] | None = None
        for found in self._pattern.finditer(seen):
            letters = letters or list(text)
            first, last = places[found.start()], places[found.end() - 1]
            if found.lastgroup == "angle":
                letters[first] = "‹"
            elif found.lastgroup == "colon":
                letters[last] = ""
            else:
                letters[first], letters[last] = "⟦", "⟧"
                for inner in ("opens", "closes") if found.lastgroup == "closes" else ():
                    letters[places[found.start(inner)]] = ""
        changed = text if letters is None else "".join(letters)
        changed = changed.replace(_HARMONY_FINAL, "assistant final")
        changed = _FINAL_RESPONSE.sub("⟦", changed)
        return break_control_tokens(_TRIANGLE.sub("‹", changed))


def _pattern(tags: set[str], labels: set[str], verdicts: str) -> re.Pattern[str]:
    """Matches, in a skeleton, the ``<`` of what reads as a tag of one of ``tags``, as a mark of a
    thought or as a control token, and whole what reads as a label, as a thought's mark in square
    brackets, or as a verdict (a pattern) in double ones.

    Case, spaces, hyphens, invisible characters and look-alike letters make no difference:
    ``< / Answer-B`` is found for the tag ``answer_b``, and ``answer b :`` for the label
    ``Answer B``.
    """
    gap = _FILLER
    ends = r"(?![^\W_])"
    tag = rf"{gap}/?{gap}(?:{_spellings(tags)}){ends}"
    space = rf"(?:[^\W_]{{1,20}}{gap}:{gap})?"  # of a name, as in <ns:think>
    thought = rf"{gap}/?{gap}{space}(?:{_spellings(_THOUGHTS)}){ends}[^<>]{{0,200}}>"
    control = rf"{gap}\|[^<>|]{{1,80}}\|{gap}>"
    pattern = rf"(?P<angle><)(?={tag}|{thought}|{control})"
    pattern += rf"|\[{gap}/?{gap}(?P<square>{_spellings({'think', 'thinking'})}){gap}\]"
    if labels:
        pattern += rf"|(?<![^\W_])(?:{_spellings(labels)}){gap}(?P<colon>:)"
    if verdicts:
        pattern += rf"|\[{gap}(?P<opens>\[){gap}(?:{verdicts}){gap}(?P<closes>\]){gap}\]"
    return re.compile(pattern)


def _either(words: Collection[str]) -> str:
    """A pattern of any of ``words`` in a skeleton."""
    plain = {skeleton(word)[0].strip() for word in words} - {""}
    return "|".join(_FILLER.join(map(re.escape, word.split(" "))) for word in sorted(plain))


def _spellings(names: set[str]) -> str:
    words = {skeleton(name)[0].replace(" ", "") for name in names}
    letters = sorted({"".join(filter(str.isalnum, word)) for word in words})
    return "|".join(_FILLER.join(map(re.escape, word)) for word in letters)
