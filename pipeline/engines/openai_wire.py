"""What goes over the wire to an OpenAI-compatible server, and what comes back. No I/O."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from prefloop.data.protocol import EngineFailed, Request, RequestRejected
from prefloop.pipeline.engines.settings import OpenAIEngine

_TOP_LOGPROBS = 20  # the most that the chat API answers
_TOP_LOGPROBS_COMPLETIONS = 5  # the most that OpenAI's completions API answers


class GarbledResponseError(Exception):
    """The body is not what the API promises. Worth another try."""


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
        config.max_tokens_field if chat else "max_tokens": sampling.max_tokens,
    }
    if chat:
        body["messages"] = [dict(message) for message in request.messages]
    else:
        body["prompt"] = list(prompt or ())
    if sampling.stop:
        body["stop"] = list(sampling.stop)
    if config.vllm_extensions:
        body["return_token_ids"] = True
    if sampling.top_k > 0:
        if not config.vllm_extensions:
            raise EngineFailed(
                "the OpenAI API has no top_k", "set top_k: 0, or vllm_extensions: true for vLLM"
            )
        body["top_k"] = sampling.top_k
    body |= _logprobs(config, request) | _constraint(config, request)
    return body


def _logprobs(config: OpenAIEngine, request: Request) -> dict[str, Any]:
    if not config.logprobs:
        if request.choices is not None:
            raise EngineFailed(
                "a verdict is read from log-probabilities, but logprobs is false",
                "set logprobs: true, or use a judge with a JSON verdict",
            )
        return {}
    if config.api == "chat":
        top = _TOP_LOGPROBS if request.choices is not None else 0
        return {"logprobs": True, "top_logprobs": top}
    most = _TOP_LOGPROBS if config.vllm_extensions else _TOP_LOGPROBS_COMPLETIONS
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


@dataclass(frozen=True)
class Reply:
    """A parsed response. ``logprob`` in nats, None without log-probabilities."""

    text: str
    token_ids: tuple[int, ...]
    finish_reason: str
    logprob: float | None
    first_logprobs: Mapping[str, float]
    prompt_tokens: int
    completion_tokens: int


def parse_response(api: str, body: Any) -> Reply:
    """Read a response body.

    Raises ``GarbledResponseError`` if it is not one, ``RequestRejected`` if the server withheld the
    answer.
    """
    try:
        choice, usage = body["choices"][0], body["usage"]
        reason = choice["finish_reason"]
        text = (choice["message"]["content"] or "") if api == "chat" else choice["text"]
        read = _chat_logprobs if api == "chat" else _completions_logprobs
        steps, first = read(choice.get("logprobs"))
        answer = Reply(
            text=str(text),
            token_ids=tuple(map(int, choice.get("token_ids") or ())),
            finish_reason=reason,
            logprob=None if steps is None else math.fsum(steps),
            first_logprobs=first,
            prompt_tokens=int(usage["prompt_tokens"]),
            completion_tokens=int(usage["completion_tokens"]),
        )
    except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
        raise GarbledResponseError(f"unexpected response body ({error!r})") from error
    if reason not in ("stop", "length"):
        raise RequestRejected("refused_by_server", f"finish_reason {reason!r}")
    return answer


def _chat_logprobs(logprobs: Any) -> tuple[list[float] | None, dict[str, float]]:
    if not logprobs or logprobs.get("content") is None:
        return None, {}
    tokens = logprobs["content"]
    first = tokens[0].get("top_logprobs") or [] if tokens else []
    return (
        [float(token["logprob"]) for token in tokens],
        _by_word((seen["token"], seen["logprob"]) for seen in first),
    )


def _completions_logprobs(logprobs: Any) -> tuple[list[float] | None, dict[str, float]]:
    if not logprobs or logprobs.get("token_logprobs") is None:
        return None, {}
    first = (logprobs.get("top_logprobs") or [None])[0] or {}
    return [float(step) for step in logprobs["token_logprobs"]], _by_word(first.items())


def _by_word(seen: Any) -> dict[str, float]:
    """Log-probability of each word, " A" and "A" added up."""
    words: dict[str, float] = {}
    for token, logprob in seen:
        word = str(token).strip()
        words[word] = float(np.logaddexp(words.get(word, -math.inf), float(logprob)))
    return words
