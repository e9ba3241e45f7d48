"""An answer that came in pieces: some servers send server-sent events, asked for or not.

The pieces are put together to the body that would have come at once. Of a stream that broke off,
nothing is taken.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from prefloop.pipeline.engines.openai.server_words import load_body

_BEGINS = (b"data:", b"event:", b"id:", b"retry:", b":")
_JOINED = ("content", "reasoning_content", "reasoning", "thinking", "refusal", "text")
"""Texts of which each piece brings some more."""


def is_stream(data: bytes) -> bool:
    """Whether a body is a stream of events."""
    return data.removeprefix(b"\xef\xbb\xbf").lstrip().startswith(_BEGINS)


def body_of_events(data: bytes) -> Any:
    """The body that the events in ``data`` come to.

    Raises ``ValueError`` for a stream that has no answer, or whose end is missing.
    """
    body: dict[str, Any] = {}
    choices: dict[int, dict[str, Any]] = {}
    is_over = False
    for event in _events(data):
        if event is None:
            is_over = True
            continue
        if not isinstance(event, dict):
            raise ValueError("an event that is no object")
        pieces = event.get("choices")
        body |= {name: value for name, value in event.items() if name != "choices" and value}
        for place, piece in enumerate(pieces if isinstance(pieces, list) else []):
            if isinstance(piece, dict):
                at = piece.get("index")
                _add(choices.setdefault(at if isinstance(at, int) else place, {}), piece)
    if body.get("error"):
        return body
    if not choices:
        raise ValueError("events without an answer")
    if not is_over and not all(one.get("finish_reason") for one in choices.values()):
        raise ValueError("events that broke off")
    return body | {"choices": [{**choices[at], "index": at} for at in sorted(choices)]}


def _events(data: bytes) -> Iterator[Any]:
    """What each event says, null for the last one's mark. Raises ``ValueError``."""
    lines: list[bytes] = []
    for line in [*data.splitlines(), b""]:
        name, _, value = line.removeprefix(b"\xef\xbb\xbf").partition(b":")
        if name == b"data":
            lines.append(value.removeprefix(b" "))
        elif not line and lines:
            said = b"\n".join(lines).strip()
            lines = []
            if said:
                yield None if said == b"[DONE]" else load_body(said)


def _add(choice: dict[str, Any], piece: dict[str, Any]) -> None:
    """Add what one event says of a choice."""
    for name, value in piece.items():
        if name == "delta" and isinstance(value, dict):
            _add_turn(choice.setdefault("message", {}), value)
        elif name == "logprobs" and isinstance(value, dict):
            _add_logprobs(choice, value)
        elif name == "token_ids" and isinstance(value, list):
            choice[name] = choice.get(name, []) + value
        elif name == "text" and isinstance(value, str):
            choice[name] = choice.get(name, "") + value
        elif value is not None and name != "delta":
            choice[name] = value


def _add_turn(turn: dict[str, Any], delta: dict[str, Any]) -> None:
    for name, value in delta.items():
        if name == "tool_calls" and isinstance(value, list):
            _add_calls(turn.setdefault(name, []), value)
        elif name in _JOINED and isinstance(value, str) and isinstance(turn.get(name, ""), str):
            turn[name] = turn.get(name, "") + value
        elif isinstance(value, list) and isinstance(turn.get(name), list):
            turn[name] += value
        elif value is not None:
            turn[name] = value


def _add_calls(calls: list[dict[str, Any]], pieces: list[Any]) -> None:
    for piece in pieces:
        if not isinstance(piece, dict):
            raise ValueError("a call that is no object")
        at = piece.get("index")
        place = at if isinstance(at, int) and not isinstance(at, bool) else len(calls)
        if not 0 <= place <= len(calls):
            raise ValueError("calls that are out of order")
        if place == len(calls):
            calls.append({"type": "function", "function": {"name": "", "arguments": ""}})
        said = piece.get("function")
        for name, value in (said if isinstance(said, dict) else {}).items():
            if name in ("name", "arguments") and isinstance(value, str):
                calls[place]["function"][name] += value


def _add_logprobs(choice: dict[str, Any], piece: dict[str, Any]) -> None:
    """The tokens of one event behind those before it; lists of tokens go on, whatever they hold."""
    found = choice.get("logprobs")
    if not isinstance(found, dict):
        found = choice["logprobs"] = {}
    for name, value in piece.items():
        if isinstance(value, list):
            before = found.get(name)
            found[name] = (before if isinstance(before, list) else []) + value
