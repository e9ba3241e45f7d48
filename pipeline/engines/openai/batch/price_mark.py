"""Kept answers that were cheaper say so: the same answer costs what it cost, however it is read."""

from __future__ import annotations

from typing import Any

_FIELD = "prefloop_price_share"


def marked(kept: str, share: float) -> str:
    """The body of an answer as the cache has it, an object, with the ``share`` of the engine's
    prices that it cost."""
    return f'{kept.rstrip()[:-1]}, "{_FIELD}": {share!r}}}'


def share_in(body: Any) -> float:
    """The share that stands in a body of the cache; 1 where none does."""
    share = body.get(_FIELD) if isinstance(body, dict) else None
    if isinstance(share, bool) or not isinstance(share, int | float):
        return 1.0
    return float(share) if 0 <= share <= 1 else 1.0
