"""Asking a server through a fresh engine, as a stage does."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from prefloop.data.protocol import Request, Sampling
from prefloop.pipeline.engines.openai.openai_server import OpenAIServer
from prefloop.pipeline.engines.openai.openai_wire import PROBE
from prefloop.pipeline.engines.settings import OpenAIEngine
from tests.helpers.servers import FaultyServer

_FIELDS = (
    "choices", "json_schema", "thought_tokens", "chat_template_kwargs", "reasoning_effort",
)  # fmt: skip


def question(text: str = "a fox", *, seeds: tuple[int, ...] = (1,), **more: Any) -> Request:
    """A request of one turn; ``more`` are fields of it, and sampling parameters."""
    fixed = {name: more.pop(name) for name in _FIELDS if name in more}
    return Request(text, ({"role": "user", "content": text},), Sampling(**more), seeds, **fixed)


def ask(url: str, *requests: Request, folder: Path | None = None, **config: Any) -> list[Any]:
    """Outcomes (completions or errors) of ``requests``, sent at once, with short backoffs.

    ``folder`` is the engine's in a run directory; ``config`` holds settings of the engine."""
    return ask_engine({"base_url": url, **config}, *requests, folder=folder)


def ask_endpoints(
    endpoints: Sequence[str | dict[str, Any]],
    *requests: Request,
    folder: Path | None = None,
    **config: Any,
) -> list[Any]:
    """The same over several servers: their addresses, or all that is set of them."""
    several = [{"base_url": one} if isinstance(one, str) else one for one in endpoints]
    return ask_engine({"endpoints": several, **config}, *requests, folder=folder)


def ask_engine(
    config: Mapping[str, Any], *requests: Request, folder: Path | None = None
) -> list[Any]:
    """The same with any settings of the engine."""
    settings = {"max_backoff_s": 0.02, "timeout_s": 5, "max_retries": 1, **config}

    async def go() -> list[Any]:
        engine = OpenAIServer(OpenAIEngine(**settings), "m", cache=folder)
        try:
            return await asyncio.gather(
                *(engine.generate(each) for each in requests), return_exceptions=True
            )
        finally:
            await engine.aclose()

    return asyncio.run(go())


def asked(server: FaultyServer) -> list[str]:
    """The last message of each request that came, but for those that see whether the server
    answers at all."""
    texts = [str(body["messages"][-1]["content"]) for _, _, body in server.requests]
    return [text for text in texts if text != PROBE[0]["content"]]


def letters(text: str, **_: Any) -> float:
    """A verifier's score that differs wherever two answers do, more or less."""
    return float(sum(at * ord(letter) for at, letter in enumerate(text)))
