"""Whether a table's fields seem to be parted by another character than its reader took."""

from __future__ import annotations

from collections.abc import Iterable


def delimiter_hint(texts: Iterable[str]) -> str:
    """A clause for a message, where ``texts`` (a header, or a record as it was read) hold
    semicolons, or tabs, as a delimiter would; else nothing."""
    shown = "\n".join(map(str, texts))
    for character, name in ((";", "';'"), ("\t", "a tab")):
        if character in shown:
            return f" (is the delimiter {name}? save the file with commas between fields)"
    return ""
