"""Pairs to judge, and an engine that answers by a script: what the model says is the input here."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from dataclasses import replace

from prefloop.data.hashing import content_id, pair_id
from prefloop.data.protocol import Completion, Engine, EngineFailed, Request
from prefloop.labelers.base import Answer, Pair, Vote
from prefloop.labelers.config import JudgeLabeler
from prefloop.labelers.factory import build_labeler


class ScriptedEngine:
    """Answers each request with what ``script`` makes of it, and remembers the requests."""

    def __init__(self, script: Callable[[Request], Completion]) -> None:
        self.script = script
        self.requests: list[Request] = []

    async def generate(self, request: Request) -> list[Completion]:
        self.requests.append(request)
        await asyncio.sleep(0)
        return [self.script(request) for _ in request.seeds]

    async def load_policy(self, path: str) -> None:
        raise EngineFailed("scripted")

    async def aclose(self) -> None:
        pass


def cut_off(text: str, made: Callable[..., Completion] | None = None) -> Completion:
    """An answer that ran into its token limit, else as ``made`` makes it."""
    return replace((made or completion)(text), finish_reason="length")


def completion(text: str = "", **choice_probabilities: float) -> Completion:
    logprobs = {key: math.log(p) if p else -math.inf for key, p in choice_probabilities.items()}
    return Completion(text, (1,), "stop", -0.1, 20, 1, logprobs or None, cost=0.5)


def make_pair(name: str = "p", a: str = "good", b: str = "bad", **changes: object) -> Pair:
    prompt = content_id("prompt", name)
    a_id, b_id = content_id(prompt, "a"), content_id(prompt, "b")
    values = {
        "pair_id": pair_id(prompt, a_id, b_id),
        "prompt_id": prompt,
        "round": 0,
        "messages": ({"role": "user", "content": f"Say something {name}."},),
        "reference": None,
        "metadata": {},
        "a": Answer(a_id, a, 3, "sampled"),
        "b": Answer(b_id, b, 4, "sampled"),
    }
    return replace(Pair(**values), **changes)


def all_pairs(*texts: str, name: str = "p", reference: str | None = None) -> list[Pair]:
    """The round robin of ``texts`` as answers to one prompt; ``texts[i]`` has the i-th id."""
    prompt = content_id("prompt", name)
    answers = [Answer(f"{index:032x}", text, 3, "sampled") for index, text in enumerate(texts)]
    return [
        replace(
            make_pair(name),
            pair_id=pair_id(prompt, a.candidate_id, b.candidate_id),
            reference=reference,
            a=a,
            b=b,
        )
        for index, a in enumerate(answers)
        for b in answers[index + 1 :]
    ]


def label(engine: ScriptedEngine, *pairs: Pair, seed: int = 0, **config: object) -> list[Vote]:
    settings = JudgeLabeler(model="m", **{"judge": "pairwise_short", **config})
    assert isinstance(engine, Engine)
    judge = build_labeler(settings, engine=engine, seed=seed)
    return asyncio.run(judge.label(pairs, block="0/label/0/judge"))
