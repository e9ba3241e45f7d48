"""Fences around untrusted text in a judge's prompt.

A template marks off what is to be judged by tags (``<answer_a>``) or labels (``Answer A:``). Text
that is filled in may hold look-alikes, and so close its fence and speak for the template or for
another answer. They are made harmless: a tag loses its angle bracket, a label its colon.
"""

from __future__ import annotations

import re

from prefloop.labelers.judges.look_alikes import skeleton

_TAG = re.compile(r"</?([A-Za-z][\w-]*)(?:\s[^<>]*)?>")
_LABEL = re.compile(r"^([A-Za-z][\w -]*):[ \t]*\{\{", re.MULTILINE)  # such as "Answer A: {{"
# In a skeleton all that may stand inside a tag's name without a reader (or a model) being misled
# less is one space: white space, hyphens, underscores, and characters that print as nothing.
_FILLER = " ?"


class Fences:
    """The fences of one template. Pure: the same text always comes out the same."""

    def __init__(self, template: str, names: set[str]) -> None:
        """``template`` is the source; ``names`` are fenced as tags whether or not it uses them."""
        tags, labels = names | set(_TAG.findall(template)), set(_LABEL.findall(template))
        self._pattern = _pattern(tags, labels)

    def harmless(self, text: str) -> str:
        """``text`` without anything that reads as one of the fences."""
        seen, places = skeleton(text)
        letters: list[str] | None = None
        for found in self._pattern.finditer(seen):
            letters = letters or list(text)
            if found[0] == "<":
                letters[places[found.start()]] = "‹"
            else:
                letters[places[found.end() - 1]] = ""  # the colon
        return text if letters is None else "".join(letters)


def _pattern(tags: set[str], labels: set[str]) -> re.Pattern[str]:
    """Matches, in a skeleton, the ``<`` of what reads as a tag of one of ``tags``, and whole what
    reads as a label.

    Case, spaces, hyphens, invisible characters and look-alike letters make no difference:
    ``< / Answer-B`` is found for the tag ``answer_b``, and ``answer b :`` for the label
    ``Answer B``.
    """
    pattern = rf"<(?={_FILLER}/?{_FILLER}(?:{_spellings(tags)})(?![^\W_]))"
    if labels:
        pattern += rf"|(?<![^\W_])(?:{_spellings(labels)}){_FILLER}:"
    return re.compile(pattern)


def _spellings(names: set[str]) -> str:
    words = {skeleton(name)[0].replace(" ", "") for name in names}
    letters = sorted({"".join(filter(str.isalnum, word)) for word in words})
    return "|".join(_FILLER.join(map(re.escape, word)) for word in letters)
