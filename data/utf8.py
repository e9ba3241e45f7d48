"""Texts that can be written as UTF-8, texts that say something, and how messages show a text."""

from __future__ import annotations

import re
from collections.abc import Iterable

_NOTHING_SEEN = (
    "\\x00-\\x20\\x7f-\u00a0\u00ad\u034f\u061c\u115f\u1160\u1680\u17b4\u17b5\u180b-\u180f"
    "\u2000-\u200f\u2028-\u202f\u205f-\u206f\u2800\u3000\u3164\ufe00-\ufe0f\ufeff\uffa0\ufff9-\ufffb"
    "\U000e0000-\U000e0fff"
)
"""White space, controls and the characters that Unicode lets be invisible, for a class of a
pattern. Named one by one: ``\\s`` means other characters in RE2 than in Python."""
BLANK = f"^[{_NOTHING_SEEN}]*$"
"""A text in which there is nothing to read: for Python's ``re`` and for RE2."""
_BLANK = re.compile(BLANK)
_COMMANDS = re.compile(
    "[\x00-\x1f\x7f-\x9f\u00ad\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff]"
)
"""What moves a cursor, begins an escape sequence, breaks a line or turns the writing direction."""
NULL_WORD = (
    r"^[ \t\r\n\f\v]*(?:nan|NaN|NAN|NaT|None|null|NULL|<NA>|N/A|#N/A|undefined)[ \t\r\n\f\v]*$"
)
"""A text that is nothing but a word that programs write for a missing value: for both too."""
_NULL_WORD = re.compile(NULL_WORD)
_LISTED = 20
_NAME_CHARS = 80


def is_text(text: str) -> bool:
    """Whether ``text`` can be written as UTF-8, that is, holds no lone surrogate."""
    if text.isascii():
        return True
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def is_blank(text: str) -> bool:
    """Whether ``text`` holds nothing to read: white space and invisible characters at most."""
    return _BLANK.match(text) is not None


def is_null_word(text: str) -> bool:
    """Whether ``text`` is nothing but a word that programs write for a missing value."""
    return _NULL_WORD.match(text) is not None


def says_nothing(text: str) -> bool:
    """Whether ``text`` is blank, or such a word: for what may be left out, as a system prompt."""
    return is_blank(text) or is_null_word(text)


def escaped(text: str) -> str:
    """``text`` with surrogates backslash-escaped: those that stand for undecodable bytes as
    ``\\xNN``, others as ``\\uNNNN``. Text without surrogates is returned as it is."""
    try:
        return text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    except UnicodeEncodeError:
        return text.encode("utf-8", "backslashreplace").decode("utf-8")


def shown(text: str) -> str:
    """``text`` as one line of a message: escaped, and so are control characters, line breaks and
    controls of the writing direction, so that nothing in it can command a terminal."""
    return _COMMANDS.sub(_as_escape, escaped(text))


def listed(names: Iterable[object]) -> str:
    """``names`` as a message lists them: the first 20, and how many more there are."""
    found = [shown(str(name)) for name in names]
    words = [name if len(name) <= _NAME_CHARS else name[:_NAME_CHARS] + "…" for name in found]
    more = f" and {len(words) - _LISTED:,} more" if len(words) > _LISTED else ""
    return ", ".join(words[:_LISTED]) + more


def _as_escape(match: re.Match[str]) -> str:
    return match.group().encode("unicode_escape").decode("ascii")


def one_line(text: str) -> str:
    """``text`` as :func:`shown`, but with single blanks for white space and line breaks."""
    return " ".join(map(shown, text.split()))


def shown_block(text: str, *, as_json: bool = False) -> str:
    """``text`` as :func:`shown`, but line feeds and tabs stay as they are.

    ``as_json``: escaped as JSON has it, so that JSON stays the same JSON.
    """

    def harmless(found: re.Match[str]) -> str:
        character = found[0]
        if character in "\n\t":
            return character
        return f"\\u{ord(character):04x}" if as_json else _as_escape(found)

    return _COMMANDS.sub(harmless, text if as_json else escaped(text))
