"""From a raw row to a prompt: which fields it takes, and everything that can be wrong with them."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from prefloop.data.config import Columns
from prefloop.data.hashing import prompt_id
from prefloop.data.quarantine import BadRow
from prefloop.data.sources.rows import RawRow, bad
from prefloop.data.sources.turns import Unusable, conversation_in, numbered_turns
from prefloop.data.utf8 import is_blank, is_text, listed

_TO_FOLLOW = {"role": "assistant", "content": ""}
"""How a transcript ends that is a prompt."""

Prompt = dict[str, Any]
"""A row of ``schemas.PROMPT``."""


def parse_row(raw: RawRow, columns: Columns, *, max_chars: int | None = None) -> Prompt | BadRow:
    """The prompt in ``raw``: a row of ``schemas.PROMPT``.

    The conversation is kept as it is, but for an assistant's turn at its end: that is the
    reference answer where the reference column gives none.
    """
    try:
        return _parse(raw, columns, max_chars)
    except Unusable as problem:
        return bad(raw, problem.field, problem.reason, problem.detail)
    except RecursionError:
        return bad(raw, None, "too_deep", "values are nested too deeply: flatten the metadata")


def row_id(raw: RawRow, column: str) -> str | BadRow:
    """The explicit id of ``raw``; a whole number and its digits as text are the same id."""
    try:
        return _id(raw.fields, column)
    except Unusable as problem:
        return bad(raw, problem.field, problem.reason, problem.detail)


def _parse(raw: RawRow, columns: Columns, max_chars: int | None) -> Prompt:
    fields = raw.fields
    field, messages = _conversation(fields, columns)
    reference = None
    if messages[-1]["role"] == "assistant":
        reference = messages.pop()["content"]
    if not messages or messages[-1]["role"] != "user":
        raise Unusable(field, "bad_messages", "the last turn to answer must be the user's")
    if columns.reference and fields.get(columns.reference) is not None:
        reference = _reference(fields, columns.reference) or reference
    chars = sum(len(message["content"]) for message in messages)
    if max_chars is not None and chars > max_chars:
        raise Unusable(
            field, "too_long", f"{chars} characters, and prompts.max_chars is {max_chars}"
        )
    return {
        "prompt_id": prompt_id(messages),
        "messages": messages,
        "reference": reference,
        "metadata": _metadata(fields, columns),
        "source": raw.source,
        "row": raw.row,
    }


def _conversation(fields: Mapping[str, Any], columns: Columns) -> tuple[str, list[dict[str, str]]]:
    """The column that holds the conversation, and the conversation with all its turns."""
    value = fields.get(columns.messages)
    if isinstance(value, str) and is_blank(value) and columns.prompt in fields:
        value = None  # an empty cell is how CSV says that there is none
    if value is not None:
        return columns.messages, _messages(value, columns.messages)
    field = columns.prompt
    if field not in fields:
        if columns.messages in fields:
            raise Unusable(columns.messages, "null", "write a list of {role, content}")
        raise Unusable(
            field,
            "missing_column",
            f"the row has neither {field!r} nor {columns.messages!r}, only "
            f"{listed(fields) or 'nothing'}: set columns.prompt or columns.messages",
        )
    value = fields[field]
    if value is None:
        raise Unusable(field, "null", "write the prompt as a string, or delete the row")
    if isinstance(value, list) and value and all(isinstance(item, dict) for item in value):
        return field, _messages(value, field)
    if isinstance(value, str) and conversation_in(value, field) is not None:
        return field, _messages(value, field)
    if not isinstance(value, str):
        raise Unusable(
            field,
            "wrong_type",
            f"is of type {type(value).__name__} where a string is needed"
            + (
                ": write turns as a list of {role, content}"
                if isinstance(value, list)
                else ": quote it, or set columns.prompt to another column"
            ),
        )
    return field, [{"role": "user", "content": _text(value, field)}]


def _messages(value: Any, field: str) -> list[dict[str, str]]:
    """The turns of a list, or of a text that is a transcript or a list written out."""
    found = conversation_in(value, field)
    if isinstance(value, str) and isinstance(found, dict):
        found = [found]
    if not isinstance(found, list):
        raise Unusable(
            field,
            "wrong_type",
            f"is of type {type(value).__name__} where a list of {{role, content}} is needed: "
            "set columns.messages to another column",
        )
    turns = list(numbered_turns(found, field))
    if isinstance(value, str) and turns and turns[-1][1] == _TO_FOLLOW:
        turns.pop()
    if not turns:
        raise Unusable(field, "empty", "the conversation has no turn with text: delete the row")
    return [
        {"role": turn["role"], "content": _text(turn["content"], field, f"turn {number} ")}
        for number, turn in turns
    ]


def _text(value: str, field: str, which: str = "") -> str:
    if is_blank(value):
        raise Unusable(field, "empty", f"{which}holds no text: fill it in, or delete the row")
    if not is_text(value):
        raise Unusable(
            field, "not_utf8", f"{which}holds bytes or escapes that are no Unicode text: mend it"
        )
    return value


def _reference(fields: Mapping[str, Any], column: str) -> str | None:
    value = fields[column]
    if not isinstance(value, str):
        raise Unusable(
            column,
            "wrong_type",
            f"is of type {type(value).__name__} where a string is needed: quote it, or set "
            "columns.reference to another column",
        )
    # An empty cell is how CSV says that there is none.
    return _text(value, column) if not is_blank(value) else None


def _id(fields: Mapping[str, Any], column: str) -> str:
    if column not in fields:
        raise Unusable(column, "missing_column", "the row has no id: add one, or unset columns.id")
    value = fields[column]
    if value is None:
        raise Unusable(column, "null", "the row has no id: add one, or unset columns.id")
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise Unusable(
            column,
            "wrong_type",
            f"is of type {type(value).__name__} where a string or whole number is needed",
        )
    return _text(value, column) if isinstance(value, str) else str(value)


def _metadata(fields: Mapping[str, Any], columns: Columns) -> str:
    """JSON object of the columns carried along; the explicit id is its ``id``."""
    used = {columns.prompt, columns.messages, columns.reference, columns.id}
    wanted = columns.metadata if columns.metadata is not None else fields
    kept = {
        name: fields[name]
        for name in wanted
        if name in fields and (columns.metadata is not None or name not in used)
    }
    if columns.id is not None:
        kept["id"] = fields.get(columns.id)
    if not kept:
        return "{}"
    try:
        text = _STRICT_JSON.encode(kept)
    except (ValueError, TypeError):  # NaN or infinity, or keys that are no strings
        text = _dump(kept)
    if not is_text(text):
        field = next(name for name in kept if not is_text(_dump({name: kept[name]})))
        raise Unusable(
            field,
            "not_utf8",
            "holds bytes or escapes that are no Unicode text: mend it, or leave it out of "
            "columns.metadata",
        )
    return text


def _dump(value: Any) -> str:
    return json.dumps(_finite(value), ensure_ascii=False, default=_plain)


def _plain(value: Any) -> str:
    """What JSON has no type for (dates, decimals, bytes) as text."""
    return value.decode("utf-8", "backslashreplace") if isinstance(value, bytes) else str(value)


def _finite(value: Any) -> Any:
    """``value`` with null for the numbers that JSON does not have."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        return [_finite(item) for item in value]
    return value


_STRICT_JSON = json.JSONEncoder(ensure_ascii=False, allow_nan=False, default=_plain)
