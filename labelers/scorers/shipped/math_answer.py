"""Mathematical answers, compared by math-verify: 1/2 is 0.5 is \\frac{1}{2}."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache
from typing import Any

from prefloop.labelers.scorers.shipped.final_answer import (
    behind_hashes,
    boxed,
    last_line,
    marked,
    tagged,
)
from prefloop.labelers.scorers.shipped.outcomes import RIGHT, UNPARSED, WRONG, GoldError, gold_of

_JOINED = re.compile(r"(?<![\\a-zA-Z])[a-zA-Z]{2,}|[,;=].*[,;=]")
"""What may join several results: 3 or 4; x = 3, y = 4."""
_NUMBER = r"-?\d+(?:\.\d+)?"
_SEVERAL = re.compile(
    rf"\W*(?:not\b|{_NUMBER}\s*(?:(?:or|to|and|;)\s*{_NUMBER}|,\s+{_NUMBER}\s*(?:\Z|[.,;])))",
    re.IGNORECASE,
)
_WORDS = re.compile(r"(?<![\\a-zA-Z])[a-zA-Z]{3,}")


def score(
    text: str,
    *,
    reference: str | None,
    metadata: Mapping[str, Any],
    options: Mapping[str, Any],
    **_: Any,
) -> float:
    r"""Whether the answer's last result equals the gold one.

    Gold may be a number, an expression, or a whole solution: then its ``\boxed{}`` or what stands
    behind ``####`` counts. Raises ``GoldError`` where it holds no result.
    """
    wanted = str(gold_of(reference, metadata, options))
    gold = _gold(wanted)
    if not gold:
        raise GoldError(f"no mathematical result in the gold answer {wanted[:80]!r}")
    readings = [found for found in (_parsed(text), _bare_result(text)) if found]
    if not readings:
        return UNPARSED
    from math_verify import verify

    # Their time limits are alarms, which want the main thread; the pool has its own.
    right = any(verify(list(gold), found, timeout_seconds=None) for found in readings)
    # The library takes the first number behind "the answer is".
    return RIGHT if right and (_is_one_result(text) or not _is_one_result(wanted)) else WRONG


@cache
def _gold(text: str) -> tuple[Any, ...]:
    for part in (boxed(text), behind_hashes(text), text):
        if part and (found := _bare(part) or _parsed(part)):
            return tuple(found)
    return ()


def _is_one_result(text: str) -> bool:
    """Whether ``text`` does not say that the answer is "3 or 4", or "not 3"."""
    return boxed(text) is not None or not _SEVERAL.match(marked(text) or "")


def _bare_result(text: str) -> list[Any]:
    """What the answer comes to, where that is a formula without dollars or a box around it."""
    if boxed(text) is not None:
        return []
    part = tagged(text) or behind_hashes(text) or marked(text) or last_line(text)
    return [] if _JOINED.search(part) else _bare(part.rstrip(". *"))


def _bare(part: str) -> list[Any]:
    """A bare formula, which is read as LaTeX only between dollars; words are none."""
    return [] if not part or _WORDS.search(part) or "$" in part else _parsed(f"${part}$")


def _parsed(text: str) -> list[Any]:
    from math_verify import parse

    return list(parse(text, parsing_timeout=None, raise_on_error=False))
