"""Verifiers of one's own, as a config names them."""

from typing import Any


def length(text: str, **_: Any) -> int:
    """Longer answers win: what any two different answers can be told apart by."""
    return len(text)


def brevity(text: str, **_: Any) -> int:
    """Shorter answers win."""
    return -len(text)


def nothing(text: str, **_: Any) -> int:
    """No answer wins."""
    return 0
