"""What is asked for in one request, and what it is known by. No I/O."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from prefloop.data.conversations.chat import render_tokens
from prefloop.data.conversations.conversation import characters_of
from prefloop.data.hashing import json_hash
from prefloop.data.protocol import Request
from prefloop.pipeline.engines.answer_reader import AnswerReader, longest, template_kwargs
from prefloop.pipeline.engines.openai.headers import shown_headers
from prefloop.pipeline.engines.openai.openai_wire import PROBE, request_body
from prefloop.pipeline.engines.openai.reply_reader import ThoughtHints
from prefloop.pipeline.engines.settings import OpenAIEngine

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_CHARACTERS_PER_TOKEN = 3  # low, so that the budget's reservations are rather too large


@dataclass(frozen=True, slots=True)
class ServerQuestion:
    """One request: for an answer, or for ``n`` of them. ``key`` holds what determines what comes,
    not where or how it is fetched; ``prompt_tokens`` is what its prompt is thought to take,
    ``max_tokens`` counts those of a thought too, of each answer."""

    key: str
    body: dict[str, Any]
    max_tokens: int
    prompt_tokens: int
    wants_choices: bool
    hints: ThoughtHints
    n: int = 1


class Questioner:
    """Puts requests into the words of one server. ``model`` is the name the server gives it, and
    may be changed."""

    def __init__(
        self, config: OpenAIEngine, model: str, tokenizer: PreTrainedTokenizerBase | None
    ) -> None:
        """``tokenizer`` is the one that ``config`` names."""
        self.model = model
        self._config = config
        self._tokenizer = tokenizer
        self._reader = None if tokenizer is None else AnswerReader(tokenizer, ())
        self._headers = shown_headers(config.extra_headers)

    def prompt(self, request: Request) -> list[int] | None:
        """The prompt as token ids; null where the server renders it."""
        if self._config.api != "completions":
            return None
        assert self._tokenizer is not None  # the config demands it
        variables = template_kwargs(request)
        return render_tokens(self._tokenizer, request.messages, template_kwargs=variables)

    def one(self, request: Request, seed: int, prompt: Sequence[int] | None) -> ServerQuestion:
        """For one answer. Raises ``EngineFailed`` for what the server cannot do."""
        return self._of(request, (seed,), prompt)

    def several(
        self, request: Request, seeds: Sequence[int], prompt: Sequence[int] | None
    ) -> ServerQuestion:
        """For as many answers as there are ``seeds``, of which the first is sent: it and their
        number are all that the server knows of them."""
        return self._of(request, seeds, prompt)

    def sent_before(self, key: str, body: Mapping[str, Any]) -> ServerQuestion:
        """A request for one answer as it was sent by an earlier process."""
        said = body.get("prompt") or body.get("messages") or []
        tokens = len(said) if "prompt" in body else len(json.dumps(said)) // _CHARACTERS_PER_TOKEN
        most = body.get("max_completion_tokens", body.get("max_tokens", 0))
        wanted = body.get("top_logprobs") if self._config.api == "chat" else body.get("logprobs")
        return ServerQuestion(
            key=key,
            body=dict(body),
            max_tokens=most,
            prompt_tokens=tokens,
            wants_choices=bool(wanted),
            hints=ThoughtHints(),
        )

    def probe_ids(self, body: Mapping[str, Any]) -> list[int] | None:
        """A harmless prompt, as token ids, for a request like ``body``; null where its prompt is
        none of these."""
        if self._tokenizer is None or "prompt" not in body:
            return None
        return render_tokens(self._tokenizer, PROBE)

    def _of(
        self, request: Request, seeds: Sequence[int], prompt: Sequence[int] | None
    ) -> ServerQuestion:
        body = request_body(self._config, self.model, request, seeds[0], prompt)
        if len(seeds) > 1:
            body["n"] = len(seeds)
        asked: dict[str, Any] = {"api": self._config.api, "body": body}
        if self._headers:
            asked["headers"] = self._headers
        if "seed" not in body:
            asked["seed"] = seeds[0]  # several answers to one prompt are still several
        return ServerQuestion(
            key=json_hash(asked),
            body=body,
            max_tokens=longest(request),
            prompt_tokens=_most_prompt_tokens(request, prompt),
            wants_choices=request.choices is not None,
            hints=ThoughtHints(self._opening(request, prompt), bool(request.thought_tokens)),
            n=len(seeds),
        )

    def _opening(self, request: Request, prompt: Sequence[int] | None) -> str | None:
        """What the prompt opened a thought with; null where the server rendered the prompt."""
        if prompt is None or self._reader is None:
            return None
        return self._reader.opening(template_kwargs(request))


def _most_prompt_tokens(request: Request, prompt: Sequence[int] | None) -> int:
    """An upper estimate of the tokens of a prompt."""
    if prompt is not None:
        return len(prompt)
    text = characters_of(request.messages)
    ascii_size = len(text) if text.isascii() else sum(map(str.isascii, text))
    # Of a rare script, each byte may be a token.
    other_size = len(text.encode("utf-8", "surrogatepass")) - ascii_size
    return ascii_size // _CHARACTERS_PER_TOKEN + other_size + 8 * len(request.messages)
