"""What engines do to text."""

from __future__ import annotations

from collections.abc import Sequence


def cut_at_stop(text: str, stop: Sequence[str]) -> str:
    """``text`` up to the first of the ``stop`` strings in it."""
    return text[: min((i for s in stop if (i := text.find(s)) >= 0), default=len(text))]
