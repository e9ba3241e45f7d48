"""Several prompts of token ids in one request, where their answers are known to be theirs.

Only what a server says nothing different for is put together: greedy answers of a few tokens, whose
seed is no matter and of which none waits long for another. Each answer says which prompt it is for
(``prompt_token_ids``, of vLLM); where one does not, all are asked for alone.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from prefloop.data.hashing import json_hash

MOST = 32
"""Prompts in a request: more of them gain little, and a failed request is more of them again."""
_FEW_TOKENS = 16
_OWN = ("prompt", "seed")
_PAUSE_S = 0.002

T = TypeVar("T")
R = TypeVar("R")


def shared(body: Mapping[str, Any]) -> str | None:
    """What requests must have in common to be one; null for those that are asked alone."""
    few = 0 < body.get("max_tokens", _FEW_TOKENS + 1) <= _FEW_TOKENS
    greedy = body.get("temperature") == 0 and "n" not in body and "best_of" not in body
    if not (body.get("prompt") and few and greedy and body.get("return_token_ids") is True):
        return None
    return json_hash({name: value for name, value in body.items() if name not in _OWN})


def put_together(bodies: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """One request for ``bodies`` that :func:`shared` says belong together."""
    return {**bodies[0], "prompt": [body["prompt"] for body in bodies]}


def taken_apart(answer: Any, prompts: Sequence[Sequence[int]]) -> list[dict[str, Any]] | None:
    """What the server would have answered to each of ``prompts`` alone; null where that is not
    plain."""
    choices = answer.get("choices") if isinstance(answer, dict) else None
    usage = answer.get("usage") if isinstance(answer, dict) else None
    if not isinstance(choices, list) or not isinstance(usage, dict):
        return None
    by_index = {choice.get("index"): choice for choice in choices if isinstance(choice, dict)}
    if len(choices) != len(prompts) or by_index.keys() != set(range(len(prompts))):
        return None
    found = []
    for index, prompt in enumerate(prompts):
        choice = by_index[index]
        ids = choice.get("token_ids")
        if choice.get("prompt_token_ids") != list(prompt) or not isinstance(ids, list):
            return None
        counts = {
            "prompt_tokens": len(prompt),
            "completion_tokens": len(ids),
            "total_tokens": len(prompt) + len(ids),
        }
        found.append({**answer, "choices": [{**choice, "index": 0}], "usage": counts})
    for name in ("prompt_tokens", "completion_tokens"):
        if usage.get(name) != sum(one["usage"][name] for one in found):
            return None
    return found


@dataclass
class _Group(Generic[T, R]):
    items: list[T] = field(default_factory=list)
    futures: list[asyncio.Future[R | None]] = field(default_factory=list)


class Batches(Generic[T, R]):
    """Gathers what belongs together for a moment, and asks for it. Use it from one event loop."""

    def __init__(self, ask: Callable[[Sequence[T]], Awaitable[Sequence[R | None]]]) -> None:
        """``ask`` gives an answer for each, in order, or null where it is to be asked alone."""
        self._ask = ask
        self._groups: dict[str, _Group[T, R]] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    async def do(self, kind: str, item: T) -> R | None:
        """What ``ask`` gives for ``item``, with others of its ``kind``; null where it is to be
        asked alone."""
        loop = asyncio.get_running_loop()
        group = self._groups.get(kind)
        if group is None:
            group = self._groups[kind] = _Group()
            loop.call_later(_PAUSE_S, self._begin, kind, group)
        future: asyncio.Future[R | None] = loop.create_future()
        group.items.append(item)
        group.futures.append(future)
        if len(group.items) == MOST:
            self._begin(kind, group)
        return await future

    def _begin(self, kind: str, group: _Group[T, R]) -> None:
        if self._groups.get(kind) is not group:
            return
        del self._groups[kind]
        task = asyncio.get_running_loop().create_task(self._answer(group))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        for future in group.futures:
            future.add_done_callback(
                lambda _: task.cancel() if all(one.cancelled() for one in group.futures) else None
            )

    async def _answer(self, group: _Group[T, R]) -> None:
        answers: Sequence[R | None] = [None] * len(group.items)
        try:
            if len(group.items) > 1:
                answers = await self._ask(group.items)
        except Exception as error:  # noqa: BLE001  # it is raised where it was asked for
            for future in group.futures:
                if not future.done():
                    future.set_exception(error)
            return
        for future, answer in zip(group.futures, answers, strict=True):
            if not future.done():
                future.set_result(answer)
