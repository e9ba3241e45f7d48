"""Texts that can be written as UTF-8, and what is written for those that cannot."""

from __future__ import annotations


def is_text(text: str) -> bool:
    """Whether ``text`` can be written as UTF-8, that is, holds no lone surrogate."""
    if text.isascii():
        return True
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def escaped(text: str) -> str:
    """``text`` with surrogates backslash-escaped: those that stand for undecodable bytes as
    ``\\xNN``, others as ``\\uNNNN``. Text without surrogates is returned as it is."""
    try:
        return text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    except UnicodeEncodeError:
        return text.encode("utf-8", "backslashreplace").decode("utf-8")
