"""What goes over the wire to an OpenAI-compatible server. No I/O."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from prefloop.data.conversations.control_tokens import break_control_tokens
from prefloop.data.conversations.conversation import template_turn, tools_in
from prefloop.data.protocol import EngineFailed, Message, Request, Sampling
from prefloop.pipeline.engines.answer_reader import longest
from prefloop.pipeline.engines.settings import OpenAIEngine

PROBE: tuple[Message, ...] = ({"role": "user", "content": "Say hello."},)
PROBE_TOKENS = 16
PENALTIES_OF_NONE = {
    "repetition_penalty": 1.0, "presence_penalty": 0.0, "frequency_penalty": 0.0,
}  # fmt: skip
"""Fields of vLLM's server with which what was said before changes nothing."""
_TOP_LOGPROBS_COMPLETIONS = 5  # the most that OpenAI's completions API answers


def request_body(
    config: OpenAIEngine, model: str, request: Request, seed: int, prompt: Sequence[int] | None
) -> dict[str, Any]:
    """The JSON body for one completion; ``prompt`` holds token ids for ``api: completions``.

    Raises ``EngineFailed`` for what the configured server cannot do.
    """
    sampling, chat = request.sampling, config.api == "chat"
    body: dict[str, Any] = {
        "model": model,
        "seed": seed,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        config.max_tokens_field if chat else "max_tokens": longest(request),
    }
    body = {field: value for field, value in body.items() if value is not None}
    if chat:
        # The server renders the template, and encodes what looks like a control token as one.
        if request.chat_template_kwargs:
            body["chat_template_kwargs"] = dict(request.chat_template_kwargs)
        if request.reasoning_effort is not None:
            body["reasoning_effort"] = request.reasoning_effort
        body["messages"] = _messages(request.messages)
        if (tools := tools_in(request.messages)) is not None:
            body["tools"] = tools
    else:
        body["prompt"] = list(prompt or ())  # its template is rendered already
    if sampling.stop:
        body["stop"] = list(sampling.stop)
    if config.vllm_extensions:
        body["return_token_ids"] = True
    if sampling.top_k:
        if not config.vllm_extensions:
            raise EngineFailed(
                "the OpenAI API has no top_k",
                "set top_k: 0, or vllm_extensions: true for vLLM; for other servers, put it into "
                "the engine's extra_body",
            )
        body["top_k"] = sampling.top_k
    body |= _plain(config, sampling) | _logprobs(config, request) | _constraint(config, request)
    if twice := body.keys() & config.extra_body.keys():
        raise EngineFailed(
            f"extra_body has {min(twice)!r}, which is sent already", "take it out of extra_body"
        )
    body |= config.extra_body
    return {field: value for field, value in body.items() if field not in config.leave_out}


def _plain(config: OpenAIEngine, sampling: Sampling) -> dict[str, Any]:
    """What a vLLM server has to be told so that it draws from the model's own distribution, as the
    local engines do: where a request is silent, it takes its model's generation_config.json."""
    if not config.vllm_extensions:
        return {}
    told: dict[str, Any] = dict(PENALTIES_OF_NONE)
    if sampling.temperature != 0:
        told["min_p"] = 0.0
        if sampling.top_k == 0:
            told["top_k"] = -1
    return {field: value for field, value in told.items() if field not in config.extra_body}


def _messages(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """The turns as the chat API takes them: calls of tools have ids, which their results name."""
    turns: list[dict[str, Any]] = []
    waiting: list[str] = []  # ids of calls whose results are to come
    for message in messages:
        turn = template_turn(message)
        turn["content"] = break_control_tokens(turn["content"])
        if "tool_calls" in turn:
            turn["tool_calls"] = [
                {**call, "id": call.get("id") or f"call_{len(turns)}_{number}",
                 "function": _as_text(call["function"])}
                for number, call in enumerate(turn["tool_calls"])
            ]  # fmt: skip
            waiting = [call["id"] for call in turn["tool_calls"]]
        elif turn["role"] == "tool":
            answers = turn.get("tool_call_id") or (waiting[0] if waiting else "call")
            turn["tool_call_id"] = answers
            waiting = [one for one in waiting if one != answers]
        turns.append(turn)
    return turns


def _as_text(function: Mapping[str, Any]) -> dict[str, Any]:
    arguments = json.dumps(function["arguments"], ensure_ascii=False)
    return {**function, "arguments": break_control_tokens(arguments)}


def probe_body(body: Mapping[str, Any], prompt: Sequence[int] | None) -> dict[str, Any]:
    """A request like ``body`` with nothing in it that a server could stumble over, to learn whether
    the server answers at all; ``prompt`` is :data:`PROBE` as token ids, for ``api: completions``.
    """
    probe = shortened(body)
    for name in ("tools", "n"):
        probe.pop(name, None)
    if prompt is None:
        probe["messages"] = [dict(message) for message in PROBE]
    else:
        probe["prompt"] = list(prompt)
    return probe


def shortened(body: Mapping[str, Any]) -> dict[str, Any]:
    """A request like ``body`` for a few tokens at most."""
    few = dict.fromkeys(("max_tokens", "max_completion_tokens"), PROBE_TOKENS)
    return {field: min(few[field], v) if field in few else v for field, v in body.items()}


def _logprobs(config: OpenAIEngine, request: Request) -> dict[str, Any]:
    if not config.logprobs:
        if request.choices is not None:
            raise EngineFailed(
                "a verdict is read from log-probabilities, but logprobs is false",
                "set logprobs: true, or use a judge with a JSON verdict",
            )
        return {}
    if config.api == "chat":
        top = config.top_logprobs if request.choices is not None else 0
        return {"logprobs": True, "top_logprobs": top}
    most = config.top_logprobs
    if not config.vllm_extensions:
        most = min(most, _TOP_LOGPROBS_COMPLETIONS)
    return {"logprobs": most if request.choices is not None else 0}


def _constraint(config: OpenAIEngine, request: Request) -> dict[str, Any]:
    if request.json_schema is None:
        return {}
    schema = dict(request.json_schema)
    if config.api == "chat":
        named = {"name": "answer", "schema": schema, "strict": True}
        return {"response_format": {"type": "json_schema", "json_schema": named}}
    if config.vllm_extensions:
        return {"structured_outputs": {"json": schema}}
    raise EngineFailed("the completions API has no JSON schemas", "set api: chat")
