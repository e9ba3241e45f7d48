"""From a raw row to a prompt: which fields it takes, and everything that can be wrong with them."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

from prefloop.data.config import Columns
from prefloop.data.conversations.reasoning import split_thought
from prefloop.data.errors import InputError
from prefloop.data.hashing import content_id, prompt_id
from prefloop.data.prompts.criteria import RUBRIC, rubric_of
from prefloop.data.prompts.row_template import is_template, row_template
from prefloop.data.quarantine import BadRow
from prefloop.data.sources.rows import RawRow, bad, finite, without_type
from prefloop.data.sources.tool_turns import (
    PROMPT_TURNS,
    full_turns,
    tools_of,
    turns_json,
    with_calls,
)
from prefloop.data.sources.turns import (
    ROLES,
    Unusable,
    conversation_in,
    is_image,
    refuse_image,
    refuse_null_word,
    refuse_texts,
    text_of,
)
from prefloop.data.utf8 import is_blank, is_text, listed, says_nothing

LAST_TURN = "last_turn"
"""Of a prompt whose conversation ended in an assistant's turn, which was left out."""
_OF_TREES = {"message_id", "parent_id", "role"}
_TO_FOLLOW = {"role": "assistant", "content": ""}
"""How a transcript ends that is a prompt."""

Prompt = dict[str, Any]
"""A row of ``schemas.PROMPT``."""
_Turns = list[dict[str, Any]]


def parse_row(
    raw: RawRow,
    columns: Columns,
    *,
    max_chars: int | None = None,
    notes: Counter[str] | None = None,
) -> Prompt | BadRow:
    """The prompt in ``raw``: a row of ``schemas.PROMPT``.

    The conversation is kept as it is, but for an assistant's turn at its end, which is no part of
    the prompt. ``notes`` counts what was left out (``LAST_TURN``). Raises ``InputError`` for a
    template that is none, and where the prompt column and the conversation hold different prompts
    and the config does not say which is meant.
    """
    try:
        return _parse(raw, columns, max_chars, Counter() if notes is None else notes)
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


def _parse(raw: RawRow, columns: Columns, max_chars: int | None, notes: Counter[str]) -> Prompt:
    fields = raw.fields
    _refuse_reply(fields, columns)
    field, turns = _conversation(raw, columns)
    turns = with_calls(turns, fields.get(PROMPT_TURNS))
    reference = None
    if turns[-1]["role"] == "assistant":
        last = turns.pop()
        if columns.last_turn == "reference":
            reference = _alone(last["content"])
        else:
            notes[LAST_TURN] += 1
    if not turns or turns[-1]["role"] not in ("user", "tool"):
        raise Unusable(field, "bad_messages", "the last turn to answer must be the user's")
    if not any(turn["role"] == "user" for turn in turns):
        raise Unusable(field, "bad_messages", "no turn is the user's")
    turns = _with_system(turns, fields, columns.system)
    if columns.reference and fields.get(columns.reference) is not None:
        reference = _reference(fields, columns.reference) or reference
    chars = sum(len(turn["content"]) for turn in turns)
    if max_chars is not None and chars > max_chars:
        raise Unusable(
            field, "too_long", f"{chars} characters, and prompts.max_chars is {max_chars}"
        )
    messages = [{"role": turn["role"], "content": turn["content"]} for turn in turns]
    tools = tools_of(fields.get(columns.tools), columns.tools) if columns.tools else None
    full = turns_json(turns)
    for name, text in ((columns.tools or "", tools), (field, full)):
        if text is not None and not is_text(text):
            raise Unusable(name, "not_utf8", "holds escapes that are no Unicode text: mend it")
    return {
        "prompt_id": id_with_tools(messages, tools, full),
        "messages": messages,
        "reference": reference,
        "metadata": _metadata(fields, columns),
        "source": raw.source,
        "row": raw.row,
        "tools": tools,
        "turns": full,
    }


def id_with_tools(
    messages: Sequence[Mapping[str, Any]], tools: str | None, full: str | None
) -> str:
    """The id of a prompt, of which the tools that may be called and the calls are a part."""
    found = prompt_id(messages)
    return found if tools is None and full is None else content_id(found, tools or "", full or "")


def _refuse_reply(fields: Mapping[str, Any], columns: Columns) -> None:
    """Raise :class:`Unusable` for a message of a tree (OASST's rows) that is no prompt by itself:
    an assistant's, or one that replies to another row's."""
    if not fields.keys() >= _OF_TREES or columns.prompt_column not in fields:
        return
    if isinstance(fields.get(columns.messages_column), list):
        return
    role = fields["role"]
    said = ROLES.get(role.strip().lower()) if isinstance(role, str) else None
    if said not in (None, "user"):
        raise Unusable("role", "no_prompt", f"is {role!r}: the message is no prompt, but a reply")
    parent = fields["parent_id"]
    if isinstance(parent, str) and not says_nothing(parent):
        raise Unusable(
            "parent_id",
            "no_prompt",
            "the message replies to another row's, and is no prompt without the turns before it: "
            "`sample.from` and `prefloop label` read such trees whole",
        )


def _with_system(turns: _Turns, fields: Mapping[str, Any], column: str | None) -> _Turns:
    value = fields.get(column) if column else None
    if column is None or value is None or (isinstance(value, str) and says_nothing(value)):
        return turns
    if not isinstance(value, str):
        raise Unusable(
            column,
            "wrong_type",
            f"is of type {type(value).__name__} where a string is needed: quote it, or set "
            "columns.system to another column",
        )
    if turns[0]["role"] == "system":
        return turns
    return [{"role": "system", "content": _text(value, column)}, *turns]


def _conversation(raw: RawRow, columns: Columns) -> tuple[str, _Turns]:
    """The column that holds the conversation, and the conversation with all its turns."""
    fields, named = raw.fields, columns.messages_column
    value = fields.get(named)
    nothing = value == [] or (isinstance(value, str) and is_blank(value))
    if nothing and _has_prompt_column(fields, columns):
        value = None  # an empty cell of CSV, and an empty list of a table, say that there is none
    if value is None:
        return _prompt(fields, columns)
    if columns.prompt is None or columns.prefer == "messages" or not _has_prompt(fields, columns):
        return named, _messages(value, named)
    if columns.prefer == "prompt":
        return _prompt(fields, columns)
    (_, one), other = _prompt(fields, columns), _messages(value, named)
    if _asked(one) != _asked(other):
        raise InputError(
            f"{raw.source}, row {raw.row}: columns.prompt ({columns.prompt}) and the column "
            f"{named!r} hold different prompts: set columns.prefer to prompt or messages"
        )
    return named, other


def _asked(turns: _Turns) -> list[tuple[str, str]]:
    """What two conversations have in common that are the same prompt."""
    said = turns[:-1] if turns[-1]["role"] == "assistant" else turns
    return [(turn["role"], turn["content"].strip()) for turn in said]


def _has_prompt_column(fields: Mapping[str, Any], columns: Columns) -> bool:
    return is_template(columns.prompt_column) or columns.prompt_column in fields


def _has_prompt(fields: Mapping[str, Any], columns: Columns) -> bool:
    """Whether the columns of the prompt hold anything."""
    values = [fields.get(name) for name in prompt_columns(columns)]
    return any(not is_blank(one) if isinstance(one, str) else bool(one) for one in values)


def _prompt(fields: Mapping[str, Any], columns: Columns) -> tuple[str, _Turns]:
    """As :func:`_conversation`, by the prompt column or the template."""
    field, messages = columns.prompt_column, columns.messages_column
    if is_template(field):
        template = row_template(field)
        field = ", ".join(template.columns)
        text = _text(template.render(fields, field), field)
        return field, [{"role": "user", "content": text}]
    if field not in fields:
        if messages in fields:
            raise Unusable(messages, "null", "write a list of {role, content}")
        raise Unusable(
            field,
            "missing_column",
            f"the row has neither {field!r} nor {messages!r}, only "
            f"{listed(fields) or 'nothing'}: set columns.prompt or columns.messages",
        )
    value = fields[field]
    if value is None:
        raise Unusable(field, "null", "write the prompt as a string, or delete the row")
    if isinstance(value, list) and value and all(isinstance(item, dict) for item in value):
        if "type" not in value[0]:
            return field, _messages(value, field)
        value = text_of(value, field, "")  # one turn, in parts
    if isinstance(value, str) and conversation_in(value, field) is not None:
        return field, _messages(value, field)
    if not isinstance(value, str):
        refuse_image(value, field, "")
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
    refuse_null_word(value, field)
    refuse_texts(value, field)
    return field, [{"role": "user", "content": _text(value, field)}]


def _messages(value: Any, field: str) -> _Turns:
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
    turns = list(full_turns(found, field))
    if isinstance(value, str) and turns and turns[-1][1] == _TO_FOLLOW:
        turns.pop()
    if not turns:
        raise Unusable(field, "empty", "the conversation has no turn with text: delete the row")
    for number, turn in turns:
        if turn["role"] != "tool":  # a tool may give nothing back
            _text(turn["content"], field, f"turn {number} ")
    return [turn for _, turn in turns]


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
    return _alone(_text(value, column)) if not is_blank(value) else None


def _alone(text: str) -> str | None:
    """A reference answer without the thought before it; null where there is nothing behind it."""
    answer = split_thought(text, opened=None).answer
    return None if is_blank(answer) else answer


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
    used = _used(columns)
    wanted = columns.metadata if columns.metadata is not None else fields
    kept = {
        name: fields[name]
        for name in wanted
        if name in fields
        and (columns.metadata is not None or (name not in used and not is_image(fields[name])))
    }
    if columns.id is not None:
        kept["id"] = fields.get(columns.id)
    rubric = _rubric(fields, columns.rubric) if columns.rubric else None
    if rubric is not None:
        kept[RUBRIC] = rubric
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


def _rubric(fields: Mapping[str, Any], column: str) -> list[dict[str, Any]] | None:
    """The criteria of a prompt; null where it has none."""
    try:
        criteria = rubric_of(fields.get(column))
    except ValueError as error:
        raise Unusable(column, "bad_rubric", str(error)) from None
    return None if criteria is None else [one.model_dump(mode="json") for one in criteria]


@lru_cache(maxsize=64)
def _used(columns: Columns) -> frozenset[str | None]:
    """The columns that prompts and what belongs to them are made of."""
    return frozenset(
        [
            *prompt_columns(columns), columns.messages_column, columns.reference, columns.id,
            columns.system, columns.tools, columns.rubric,
        ]
    )  # fmt: skip


def prompt_columns(columns: Columns) -> tuple[str, ...]:
    """The columns that prompts are made of: one, or those that the template names."""
    named = columns.prompt_column
    return row_template(named).columns if is_template(named) else (named,)


def _dump(value: Any) -> str:
    return json.dumps(finite(value), ensure_ascii=False, default=without_type)


_STRICT_JSON = json.JSONEncoder(ensure_ascii=False, allow_nan=False, default=without_type)
