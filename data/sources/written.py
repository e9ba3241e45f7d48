"""Lists of turns, or of answers, that were written out as text, as ``to_csv`` does with what is
no text.

Three ways are read: JSON, Python's ``repr`` and numpy's, which has no commas between the turns.
Nothing is ever evaluated: literals are parsed, and none that is long or deep.
"""

from __future__ import annotations

import ast
import io
import json
import re
import tokenize
import warnings
from typing import Any

_SPACE = r"[ \t\r\n]*"
_START = re.compile(rf"{_SPACE}(?:array\({_SPACE})?(?:\[{_SPACE})?\{{{_SPACE}['\"]")
_ROLE = re.compile(
    rf"""['"](?:role|from)['"]{_SPACE}:{_SPACE}(?:['"][\w ]{{1,20}}['"]|None|null)"""
)
_NUMPY = re.compile(rf"{_SPACE}array\((.*?)(?:,{_SPACE}dtype=object)?{_SPACE}\){_SPACE}", re.DOTALL)
_LIST = re.compile(rf"{_SPACE}\[.*\]{_SPACE}", re.DOTALL)
_KEYS = (("role", "content"), ("from", "value"))
_LONGEST_LITERAL = 1 << 20
"""Characters of Python's literals that are parsed: their syntax tree takes some hundred times as
much memory. JSON has no such limit."""


def could_be_written(text: str) -> bool:
    """Whether ``text`` begins like a turn or a list of turns written out."""
    return _START.match(text) is not None


def written_turns(text: str) -> Any | None:
    """The list of turns, or the turn, that ``text`` writes out; None where it is just text.

    Raises ``ValueError`` with what is wrong and what to do for turns that cannot be read.
    """
    value = _json(text)
    if value is None and _ROLE.search(text):
        value = _literal(text)
        if value is None and text.rstrip()[-1:] in ("]", ")"):
            raise ValueError(
                "looks like a list of turns written out as text, but is neither JSON nor a Python "
                f"literal of at most {_LONGEST_LITERAL:,} characters: write the column as JSON "
                "(json.dumps), or the file as JSON Lines or Parquet"
            )
    return value if _are_turns(value) else None


def looks_like_list(text: str) -> bool:
    """Whether ``text`` begins and ends like a list that was written out."""
    return _LIST.fullmatch(text) is not None


def written_list(text: str) -> list[Any]:
    """The list that ``text`` writes out.

    Raises ``ValueError`` with what is wrong and what to do for one that cannot be read.
    """
    value = _json(text)
    if value is None and not _texts_side_by_side(text):
        value = _literal(text)
    if not isinstance(value, list):
        raise ValueError(
            "looks like a list written out as text, but is neither JSON nor a Python literal of at "
            f"most {_LONGEST_LITERAL:,} characters: write the column as JSON (json.dumps), or the "
            "file as JSON Lines or Parquet"
        )
    return value


def _texts_side_by_side(text: str) -> bool:
    """Whether texts follow each other without a comma, as numpy writes them: Python would join
    them to one. Also where that cannot be told."""
    before = None
    try:
        for token in tokenize.generate_tokens(io.StringIO(text[: _LONGEST_LITERAL + 1]).readline):
            if token.type in (tokenize.NL, tokenize.NEWLINE):
                continue
            if token.type == before == tokenize.STRING:
                return True
            before = token.type
    except (tokenize.TokenError, SyntaxError):
        return True
    return False


def _are_turns(value: Any) -> bool:
    turns = [value] if isinstance(value, dict) else value
    return (
        isinstance(turns, list)
        and bool(turns)
        and all(
            isinstance(turn, dict) and any(set(keys) <= turn.keys() for keys in _KEYS)
            for turn in turns
        )
    )


def _json(text: str) -> Any | None:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _literal(text: str) -> Any | None:
    if len(text) > _LONGEST_LITERAL:
        return None
    array = _NUMPY.fullmatch(text)
    text = (array.group(1) if array else text).strip()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a backslash that escapes nothing
            try:
                return ast.literal_eval(text)
            except SyntaxError:
                return ast.literal_eval(_with_commas(text))
    except (SyntaxError, ValueError, TypeError, MemoryError, RecursionError, tokenize.TokenError):
        return None


def _with_commas(text: str) -> str:
    """``text`` with a comma between dicts that follow each other without one."""
    starts = [0]
    for line in io.StringIO(text):
        starts.append(starts[-1] + len(line))
    cuts: list[int] = []
    behind: int | None = None
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type in (tokenize.NL, tokenize.NEWLINE):
            continue
        if token.string == "{" and behind is not None:
            cuts.append(behind)
        row, column = token.end
        behind = starts[row - 1] + column if token.string == "}" else None
    pieces = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    return ",".join(pieces)
