"""Mathematical answers, compared by math-verify: 1/2 is 0.5 is \\frac{1}{2}."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache
from typing import Any

from prefloop.labelers.scorers.shipped.final_answer import behind_hashes, boxed
from prefloop.labelers.scorers.shipped.outcomes import RIGHT, UNPARSED, WRONG, GoldError, gold_of

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
    found = _parsed(text)
    if not found:
        return UNPARSED
    from math_verify import verify

    # Their time limits are alarms, which want the main thread; the pool has its own.
    return RIGHT if verify(list(gold), found, timeout_seconds=None) else WRONG


@cache
def _gold(text: str) -> tuple[Any, ...]:
    for part in (boxed(text), behind_hashes(text), text):
        if part:
            # A bare formula is read as LaTeX only between dollars, and words are no formula.
            bare = not _WORDS.search(part) and "$" not in part
            if found := (_parsed(f"${part}$") if bare else []) or _parsed(part):
                return tuple(found)
    return ()


def _parsed(text: str) -> list[Any]:
    from math_verify import parse

    return list(parse(text, parsing_timeout=None, raise_on_error=False))
