"""Answers that are to be one text, but for case, spaces and the stop at the end."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping
from typing import Any

from prefloop.labelers.scorers.shipped.final_answer import (
    behind_hashes,
    boxed,
    last_line,
    marked,
    tagged,
    without_styles,
)
from prefloop.labelers.scorers.shipped.outcomes import RIGHT, UNPARSED, WRONG, GoldError, gold_of


def score(
    text: str,
    *,
    reference: str | None,
    metadata: Mapping[str, Any],
    options: Mapping[str, Any],
    **_: Any,
) -> float:
    """Whether the answer is the gold text, or one of them where gold is a list.

    ``options["within"]``: ``whole``, the answer is nothing else; ``final``, what it comes to (its
    box, what is behind ``####`` or "the answer is", else its last line); ``anywhere``, it holds the
    gold text as words of its own. Raises ``GoldError`` for gold that holds no text.
    """
    gold = gold_of(reference, metadata, options)
    wanted = [normal(str(one)) for one in (gold if isinstance(gold, list) else [gold])]
    if not all(wanted) or not wanted:
        raise GoldError(f"the gold answer {gold!r} holds no text")
    within = options["within"]
    if within == "final":
        surest = boxed(text) or tagged(text) or behind_hashes(text)
        parts = [surest, marked(text), last_line(text)]
        found = [normal(without_styles(part)) for part in parts if part]
    else:
        found = [normal(text)]
    if not any(found):
        return UNPARSED
    if within == "anywhere":
        held = any(re.search(rf"(?<!\w){re.escape(one)}(?!\w)", found[0]) for one in wanted)
        return RIGHT if held else WRONG
    # The surest place alone: an answer that says one thing and ends with another is not both.
    return RIGHT if next(part for part in found if part) in wanted else WRONG


def normal(text: str) -> str:
    """Composed, folded to lower case, with single spaces, without quotes, marks of emphasis, and
    punctuation at its ends."""
    folded = unicodedata.normalize("NFKC", text).casefold()
    return re.sub(r"\s+", " ", folded).strip(" \t\n.,;:!?\"'`*_“”‘’$()[]")
