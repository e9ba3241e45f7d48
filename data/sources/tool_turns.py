"""Turns that call tools, and the tools: as chat templates and TRL take them.

A turn has ``role`` and ``content``, the content as people and judges read it: a call of a tool is
there as JSON. Where a turn is more than that, ``full`` holds what a chat template is given. What an
assistant thought before its turn, where the row has it apart, is ``thought``.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from prefloop.data.sources.rows import finite, without_type
from prefloop.data.sources.turns import ROLES, Turn, Unusable, read_turn, text_of
from prefloop.data.sources.written import could_be_written
from prefloop.data.utf8 import is_blank

_TOOL_ROLES = ("tool", "function", "observation", "ipython", "tool_response")
_CALL_ROLES = ("function_call", "tool_call")
"""How ShareGPT's layout names the turn of an assistant that is a call."""
TOOLS = "tools"
"""Column of the tools that may be called in a row's conversation."""
PROMPT_TURNS = "prompt_turns"
"""Column of prefloop's own datasets: JSON of a prompt's turns as chat templates take them, where
any is more than role and content."""
CHANNEL = "channel"
"""Key of a turn that says to whom it speaks, as harmony has it."""
THOUGHTS = ("reasoning_content", "thinking", "reasoning")
"""Keys of a turn for what was thought before it, as servers and chat templates name them."""


def full_turns(value: Any, field: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """The turns of a conversation, each with its number in the row; a system turn without text is
    left out, and one in which an assistant thinks (harmony's channel ``analysis``) is the thought
    of the turn behind it. Raises :class:`Unusable`."""
    turns = [value] if isinstance(value, dict) else value
    if not turns:
        raise Unusable(field, "empty", "the conversation has no turn: delete the row")
    thoughts: list[str] = []
    for number, turn in enumerate(turns, 1):
        found = _turn(turn, field, number)
        if is_thought(turn):
            thoughts.append(found["content"])
            continue
        if thoughts and found["role"] == "assistant":
            found.setdefault("thought", "\n\n".join(thoughts))
        thoughts.clear()
        if found["role"] != "system" or not is_blank(found["content"]):
            yield number, found


def is_thought(turn: Any) -> bool:
    """Whether an assistant thinks in ``turn``, as harmony has it: it is no turn of its own."""
    return isinstance(turn, Mapping) and turn.get(CHANNEL) == "analysis"


def thought_of(turn: Mapping[str, Any]) -> str | None:
    """What the assistant thought before ``turn``, where a key of its own has it."""
    said = (turn.get(key) for key in THOUGHTS)
    return next((one for one in said if isinstance(one, str) and not is_blank(one)), None)


def turns_of(value: Any, field: str) -> list[Turn]:
    """The turns of what ``turns.conversation_in`` gives, as people and judges read them: a call of
    a tool is JSON in its turn's content. Raises :class:`Unusable`."""
    return read_alike(turn for _, turn in full_turns(value, field))


def read_alike(turns: Iterable[Mapping[str, Any]]) -> list[Turn]:
    """What people and judges read of ``turns``: role and content alone."""
    return [{"role": turn["role"], "content": turn["content"]} for turn in turns]


def turns_json(turns: Sequence[Mapping[str, Any]]) -> str | None:
    """The turns as chat templates take them, as JSON; null where all are role and content."""
    if not any("full" in turn for turn in turns):
        return None
    texts = read_alike(turns)
    whole = [turn.get("full", text) for turn, text in zip(turns, texts, strict=True)]
    return json.dumps(finite(whole), ensure_ascii=False, default=without_type)


def with_calls(turns: list[dict[str, Any]], said: Any) -> list[dict[str, Any]]:
    """``turns``, whole where a column beside them has them so (``PROMPT_TURNS``). Raises
    :class:`Unusable` where that are other turns."""
    if not isinstance(said, str) or not could_be_written(said):
        return turns
    found = _from_json(said, PROMPT_TURNS, "the turns")
    listed = isinstance(found, list) and found
    whole = [turn for _, turn in full_turns(found, PROMPT_TURNS)] if listed else []
    if read_alike(whole) != read_alike(turns):
        said = "is not the prompt's turns as JSON: leave it out, or mend it"
        raise Unusable(PROMPT_TURNS, "bad_messages", said)
    return whole


def call_text(calls: Any) -> str:
    """Calls of tools as they are shown: a JSON list of ``{name, arguments}``."""
    return json.dumps(
        [
            {"name": one["function"]["name"], "arguments": one["function"]["arguments"]}
            for one in calls
        ],
        ensure_ascii=False,
        default=str,
    )


def tools_of(value: Any, field: str) -> str | None:
    """The tools of a row as JSON, each ``{type: function, function: {name, ...}}``; null where it
    has none. Raises :class:`Unusable`."""
    found = _from_json(value, field, "the tools")
    if isinstance(found, Mapping):
        found = [found]
    if not found:
        return None
    if not isinstance(found, list):
        raise Unusable(
            field,
            "bad_tools",
            f"is of type {type(found).__name__} where a list of JSON schemas is needed",
        )
    tools = [_tool(one, field, number) for number, one in enumerate(found, 1)]
    return json.dumps(tools, ensure_ascii=False, default=str)


def _tool(value: Any, field: str, number: int) -> dict[str, Any]:
    tool = _from_json(value, field, f"tool {number}")
    function = tool.get("function", tool) if isinstance(tool, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        raise Unusable(
            field,
            "bad_tools",
            f"tool {number} has no name: write {{type: function, function: {{name, description, "
            "parameters}}}",
        )
    return {"type": "function", "function": _without_nulls(function)}


def _turn(turn: Any, field: str, number: int) -> dict[str, Any]:
    said = _role(turn)
    if said in _CALL_ROLES:
        text = turn.get("content") or turn.get("value")
        calls = _from_json(text, field, f"turn {number}")
        turn = {"role": "assistant", "content": "", "tool_calls": calls}
    elif said in _TOOL_ROLES:
        return _tool_turn(turn, field, number)
    calls = turn.get("tool_calls") or _function_call(turn) if isinstance(turn, dict) else None
    if not calls:
        role, content = read_turn(turn, field, number)
        thought = _thought(turn) if role == "assistant" else {}
        return {"role": role, "content": content, **thought}
    if said not in _CALL_ROLES and ROLES.get(said or "") != "assistant":
        raise Unusable(field, "bad_messages", f"turn {number} calls a tool, and is no assistant's")
    text = text_of(turn.get("content"), field, f"turn {number} ") or ""
    found = _from_json(calls, field, f"turn {number}: its tool_calls")
    full: dict[str, Any] = {
        "role": "assistant",
        "content": text,
        "tool_calls": [
            _call(one, field, number) for one in (found if isinstance(found, list) else [found])
        ],
    }
    shown = call_text(full["tool_calls"])
    content = f"{text}\n{shown}" if text else shown
    return {"role": "assistant", "content": content, "full": full, **_thought(turn)}


def _thought(turn: Mapping[str, Any]) -> dict[str, str]:
    thought = thought_of(turn)
    return {} if thought is None else {"thought": thought}


def _function_call(turn: Mapping[str, Any]) -> list[Mapping[str, Any]] | None:
    """The one call of a turn as OpenAI's first API has it; in a table nulls stand for none."""
    call = turn.get("function_call")
    return [call] if isinstance(call, Mapping) and call.get("name") is not None else None


def _tool_turn(turn: dict[str, Any], field: str, number: int) -> dict[str, Any]:
    content = turn.get("content")
    if content is None:
        content = turn.get("value")
    content = text_of(content, field, f"turn {number} ")
    if content is None:
        content = ""
    if not isinstance(content, str):
        content = json.dumps(_without_nulls(content), ensure_ascii=False, default=str)
    found = {"role": "tool", "content": content}
    more = {key: turn[key] for key in ("name", "tool_call_id") if isinstance(turn.get(key), str)}
    return {**found, "full": {**found, **more}} if more else found


def _call(value: Any, field: str, number: int) -> dict[str, Any]:
    """A call as chat templates take it: its arguments are an object, no text."""
    call = _from_json(value, field, f"turn {number}: a call")
    function = call.get("function", call) if isinstance(call, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        raise Unusable(
            field,
            "bad_messages",
            f"turn {number} has a call without a name: write {{type: function, function: {{name, "
            "arguments}}}",
        )
    arguments = function.get("arguments")
    if isinstance(arguments, str):
        arguments = _from_json(arguments, field, f"turn {number}: the arguments of a call")
    else:
        arguments = _without_nulls(arguments)
    identity = {"id": call["id"]} if isinstance(call.get("id"), str) else {}
    return {
        **identity,
        "type": "function",
        "function": {"name": function["name"], "arguments": arguments or {}},
    }


def _role(turn: Any) -> str | None:
    said = (turn.get("role") or turn.get("from")) if isinstance(turn, dict) else None
    return said.strip().lower() if isinstance(said, str) else None


def _from_json(value: Any, field: str, what: str) -> Any:
    """``value``, read where it is JSON as text."""
    if not isinstance(value, str):
        return value
    if not value.strip():
        return None
    try:
        return json.loads(value)
    except (ValueError, RecursionError) as error:
        raise Unusable(field, "bad_tools", f"{what}: not valid JSON: {error}") from None


def _without_nulls(value: Any) -> Any:
    """``value`` without the keys that are null: a table gives each object the keys of all."""
    if isinstance(value, Mapping):
        return {key: _without_nulls(item) for key, item in value.items() if item is not None}
    if isinstance(value, list):
        return [_without_nulls(item) for item in value]
    return value
