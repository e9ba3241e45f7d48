"""Putting a judge's questions to an engine, all at once; what the engine refuses is a reply too."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from prefloop.data.hashing import content_id, derive_seed, json_hash
from prefloop.data.protocol import (
    Completion,
    Engine,
    Message,
    Request,
    RequestRejected,
    Sampling,
    Thinking,
)


@dataclass(frozen=True, slots=True)
class Question:
    """One question to a judge. ``key`` names it among the judge's questions.

    ``schema`` is the ``json_schema`` of the request. ``failure`` says why the question could not
    be written down; there are no messages then.
    """

    key: tuple[str, ...]
    messages: tuple[Message, ...] = ()
    schema: Mapping[str, Any] | None = None
    failure: str | None = None


@dataclass(frozen=True, slots=True)
class JudgeReply:
    """What came of a question: a completion, or in ``failure`` why there is none."""

    completion: Completion | None
    failure: str | None
    prompt_hash: str | None

    @property
    def tokens(self) -> dict[str, Any]:
        """What the reply was charged, as fields of a vote."""
        if self.completion is None:
            return {}
        return {
            "prompt_tokens": self.completion.prompt_tokens,
            "completion_tokens": self.completion.completion_tokens,
            "cost": self.completion.cost,
            "reasoning_tokens": self.completion.reasoning_tokens or None,
        }

    @property
    def has_thought(self) -> bool:
        """Whether the judge thought, seen or unseen, before it answered."""
        return self.completion is not None and (
            self.completion.reasoning is not None or self.completion.reasoning_tokens > 0
        )


@dataclass(frozen=True)
class Asker:
    """Puts questions to an engine. ``choices``: words whose log-probabilities are wanted, as in
    ``prefloop.data.protocol.Request``.

    The id and the seed of a request come from the run's ``seed``, the judge's ``name`` and the
    question's key, so they are the same in a resumed run.
    """

    name: str
    engine: Engine
    sampling: Sampling
    seed: int
    choices: tuple[str, ...] | None
    thinking: Thinking = field(default_factory=Thinking)

    async def ask(self, questions: Sequence[Question], *, block: str) -> list[JudgeReply]:
        """The replies in the order of the questions. Together these are one ``block`` (see
        ``prefloop.data.protocol.Request``).

        A request that the engine refuses is a reply with its reason. ``EngineFailed`` is left to
        the caller.
        """
        size = sum(question.failure is None for question in questions)
        return list(await asyncio.gather(*(self._one(each, block, size) for each in questions)))

    async def _one(self, question: Question, block: str, block_size: int) -> JudgeReply:
        if question.failure is not None:
            return JudgeReply(None, question.failure, None)
        prompt_hash = json_hash(question.messages)
        request = Request(
            request_id=content_id(block, self.name, *question.key),
            messages=question.messages,
            sampling=self.sampling,
            seeds=(derive_seed(self.seed, self.name, *question.key),),
            choices=self.choices,
            json_schema=question.schema,
            thought_tokens=self.thinking.thought_tokens,
            chat_template_kwargs=self.thinking.chat_template_kwargs,
            reasoning_effort=self.thinking.reasoning_effort,
            block=block,
            block_size=block_size,
        )
        try:
            [completion] = await self.engine.generate(request)
        except RequestRejected as rejected:
            return JudgeReply(None, str(rejected), prompt_hash)
        return JudgeReply(completion, None, prompt_hash)
