"""The HTTP engine: any OpenAI-compatible server, one request for each seed.

A request goes: response cache, budget, rate limits, then tries with exponential backoff. What a
try can end in is decided in ``openai_errors``; what is sent and read, in ``openai_wire``.
"""

from __future__ import annotations

import asyncio
import json
import os
from pathlib import Path
from typing import Any

import openai
import tenacity
from aiolimiter import AsyncLimiter

from prefloop.data.chat import render_tokens
from prefloop.data.hashing import folder_revision, json_hash
from prefloop.data.protocol import Completion, EngineFailed, Request
from prefloop.pipeline.engines.budget import Amount, Budget
from prefloop.pipeline.engines.openai_errors import TransientError, classify
from prefloop.pipeline.engines.openai_wire import (
    GarbledResponseError,
    Reply,
    parse_response,
    request_body,
)
from prefloop.pipeline.engines.response_cache import ResponseCache
from prefloop.pipeline.engines.settings import OpenAIEngine
from prefloop.pipeline.engines.weights import is_adapter, load_tokenizer

_NO_KEY = "none"  # what is sent where no key is set; local servers ask for none
_CHARACTERS_PER_TOKEN = 3  # low, so that the budget's reservations are rather too large


class OpenAIServer:
    """Engine over an OpenAI-compatible HTTP server. Use it from one event loop."""

    def __init__(self, config: OpenAIEngine, model: str, *, cache: Path | None = None) -> None:
        """``model`` is the name the server gives it; ``cache`` is the folder for its responses
        where ``config`` names none. Sends nothing. Raises ``EngineFailed``."""
        self._config = config
        self._model = model
        self._key = os.environ.get(config.api_key_env) or _NO_KEY
        self._client = openai.AsyncOpenAI(
            base_url=config.base_url,
            api_key=self._key,
            timeout=config.timeout_s,
            max_retries=0,  # retried here, where Retry-After, budget and errors are handled
        )
        self._tokenizer = None if config.tokenizer is None else load_tokenizer(config.tokenizer)
        folder = config.cache_dir or cache
        self._cache = ResponseCache(folder) if config.cache and folder else None
        self._slots = asyncio.Semaphore(config.max_concurrency)
        self._budget = Budget(config.max_total_tokens, config.max_cost)
        # A bucket holds what it fills with in a short time: no burst at a run's start.
        rpm, tpm = config.requests_per_minute, config.tokens_per_minute
        self._request_rate = None if rpm is None else AsyncLimiter(1, 60 / rpm)
        self._token_rate = None if tpm is None else AsyncLimiter(tpm / 6, 10)

    @property
    def supports_json_schema(self) -> bool:
        """Whether ``Request.json_schema`` is honoured."""
        return self._config.api == "chat" or self._config.vllm_extensions

    @property
    def spent(self) -> Amount:
        """Tokens and money that this engine has used; answers from the cache are free."""
        return self._budget.spent

    async def generate(self, request: Request) -> list[Completion]:
        """See ``prefloop.data.protocol.Engine``."""
        prompt = None
        if self._config.api == "completions":
            assert self._tokenizer is not None  # the config demands it
            prompt = render_tokens(self._tokenizer, request.messages)
        bodies = [
            request_body(self._config, self._model, request, seed, prompt) for seed in request.seeds
        ]
        most = self._most(request, prompt)
        answers = await asyncio.gather(*(self._answer(body, most) for body in bodies))
        return [self._completion(request, answer) for answer in answers]

    async def load_policy(self, path: str) -> None:
        """See ``prefloop.data.protocol.Engine``. Only LoRA adapters, into a vLLM server that allows
        it."""
        remedy = (
            "start the server with VLLM_ALLOW_RUNTIME_LORA_UPDATING=True and --enable-lora, set "
            "vllm_extensions: true, and train LoRA adapters; or use engine type vllm"
        )
        if not (self._config.vllm_extensions and is_adapter(path)):
            raise EngineFailed(f"an HTTP server cannot load {path}", remedy)
        # The name says the content, so cached responses of another adapter cannot answer.
        name = f"policy-{folder_revision(Path(path))}"
        adapter = {"lora_name": name, "lora_path": str(Path(path).resolve())}
        try:
            await self._client.post("/load_lora_adapter", body=adapter, cast_to=str)
        except openai.APIError as error:
            if "already" not in str(error):
                message = str(error).replace(self._key, "***")
                raise EngineFailed(
                    f"{self._config.base_url} does not load {path}: {message}", remedy
                ) from error
        self._model = name

    async def aclose(self) -> None:
        """See ``prefloop.data.protocol.Engine``."""
        await self._client.close()
        if self._cache is not None:
            self._cache.close()

    async def _answer(self, body: dict[str, Any], most: Amount) -> Reply:
        # The key holds what determines the answer, not where or how it is fetched.
        cache_key = json_hash({"api": self._config.api, "body": body})
        if self._cache is not None and (known := self._cache.get(cache_key)) is not None:
            return parse_response(self._config.api, known)
        async with self._slots:
            await self._budget.reserve(most)
            spent = Amount()
            try:
                response, answer = await self._try_until_answered(body, most.tokens)
                spent = self._amount(answer)
            finally:
                await self._budget.settle(most, spent)
        if self._cache is not None:
            self._cache.put(cache_key, response)
        return answer

    async def _try_until_answered(
        self, body: dict[str, Any], tokens: int
    ) -> tuple[dict[str, Any], Reply]:
        tries = tenacity.AsyncRetrying(
            retry=tenacity.retry_if_exception_type(TransientError),
            stop=tenacity.stop_after_attempt(self._config.max_retries + 1),
            wait=self._wait,
            reraise=True,
        )
        try:
            return await tries(self._try_once, body, tokens)
        except TransientError as error:
            raise EngineFailed(
                f"{self._config.base_url}: {error}, after {self._config.max_retries + 1} tries",
                "check that the server is up and base_url is right; the same command resumes",
            ) from None

    async def _try_once(self, body: dict[str, Any], tokens: int) -> tuple[dict[str, Any], Reply]:
        if self._request_rate is not None:
            await self._request_rate.acquire()
        if self._token_rate is not None:
            await self._token_rate.acquire(min(tokens, self._token_rate.max_rate))
        path = "/chat/completions" if self._config.api == "chat" else "/completions"
        try:
            # The client's own timeout is for each read; a server that trickles outlives it.
            async with asyncio.timeout(self._config.timeout_s):
                text = await self._client.post(path, body=body, cast_to=str)
            response = json.loads(text)
            return response, parse_response(self._config.api, response)
        except openai.APIError as error:
            failure = classify(error, self._config, self._model, self._key)
        except TimeoutError:
            failure = TransientError(f"no complete answer within {self._config.timeout_s:g} s")
        except (GarbledResponseError, ValueError) as error:
            failure = TransientError(f"garbage instead of an answer: {error}")
        raise failure from None

    def _wait(self, state: tenacity.RetryCallState) -> float:
        """Exponential backoff with jitter, and never less than the server asks for."""
        longest = self._config.max_backoff_s
        backoff = tenacity.wait_random_exponential(multiplier=0.5, max=longest)(state)
        error = state.outcome.exception() if state.outcome is not None else None
        asked = error.retry_after if isinstance(error, TransientError) else None
        # A server that asks for hours is not obeyed: the retries run out and the run can resume.
        return max(backoff, min(asked or 0.0, 10 * longest))

    def _most(self, request: Request, prompt: list[int] | None) -> Amount:
        """An upper estimate of what one completion of ``request`` uses."""
        if prompt is None:
            characters = sum(len(m["content"].encode()) for m in request.messages)
            prompt_tokens = characters // _CHARACTERS_PER_TOKEN + 8 * len(request.messages)
        else:
            prompt_tokens = len(prompt)
        return self._price(prompt_tokens, request.sampling.max_tokens)

    def _amount(self, answer: Reply) -> Amount:
        return self._price(answer.prompt_tokens, answer.completion_tokens)

    def _price(self, prompt_tokens: int, completion_tokens: int) -> Amount:
        cost = (
            prompt_tokens * self._config.price_per_million_prompt_tokens
            + completion_tokens * self._config.price_per_million_completion_tokens
        ) / 1e6
        return Amount(prompt_tokens + completion_tokens, cost)

    def _completion(self, request: Request, answer: Reply) -> Completion:
        choices = None
        if request.choices is not None:
            seen = answer.first_logprobs
            choices = {c: seen.get(c.strip(), float("-inf")) for c in request.choices}
        return Completion(
            text=answer.text,
            token_ids=answer.token_ids,
            finish_reason=answer.finish_reason,
            logprob=answer.logprob,
            prompt_tokens=answer.prompt_tokens,
            completion_tokens=answer.completion_tokens,
            choice_logprobs=choices,
            cost=self._amount(answer).cost,
        )
