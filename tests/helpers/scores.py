"""A verifier of one's own, as a config names it."""

from typing import Any


def length(text: str, **_: Any) -> int:
    """Longer answers win: what any two different answers can be told apart by."""
    return len(text)
