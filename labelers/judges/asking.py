"""Putting a judge's questions to an engine, all at once, and what the votes keep of the replies.
What the engine refuses is a reply too."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from prefloop.data.hashing import content_id, derive_seed, json_hash
from prefloop.data.protocol import (
    Completion,
    Engine,
    Message,
    PartlyRejected,
    Request,
    RequestRejected,
    Sampling,
    Thinking,
)
from prefloop.labelers.judges.stored_logprobs import StoredLogprobs, store_logprobs


@dataclass(frozen=True, slots=True)
class Question:
    """One question to a judge. ``key`` names it among the judge's questions.

    ``schema`` is the ``json_schema`` of the request. ``failure`` says why the question could not
    be written down; there are no messages then. ``choices``: words whose log-probabilities are
    wanted, where they are others than the judge's.
    """

    key: tuple[str, ...]
    messages: tuple[Message, ...] = ()
    schema: Mapping[str, Any] | None = None
    failure: str | None = None
    choices: tuple[str, ...] | None = None


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
        groups = self._asked_together(questions)
        size = len(groups)
        replies: list[JudgeReply] = [
            JudgeReply(None, question.failure, None) for question in questions
        ]
        answers = await asyncio.gather(
            *(self._answers([questions[at] for at in group], block, size) for group in groups)
        )
        for group, found in zip(groups, answers, strict=True):
            for at, reply in zip(group, found, strict=True):
                replies[at] = reply
        return replies

    def _asked_together(self, questions: Sequence[Question]) -> list[list[int]]:
        """The places of the questions that can be asked, by what goes into one request: those that
        differ by nothing but their seeds, where the engine pays their prompt once."""
        asked = [at for at, question in enumerate(questions) if question.failure is None]
        if self.choices is not None or getattr(self.engine, "n_per_request", 1) == 1:
            return [[at] for at in asked]
        groups: dict[str, list[int]] = {}
        for at in asked:
            one = questions[at]
            alike = json_hash([one.messages, one.schema, one.choices])
            groups.setdefault(alike, []).append(at)
        return list(groups.values())

    async def _answers(
        self, questions: Sequence[Question], block: str, block_size: int
    ) -> list[JudgeReply]:
        """The replies to questions that are alike, by one request."""
        question = questions[0]
        prompt_hash = json_hash(question.messages)
        request = Request(
            request_id=content_id(block, self.name, *question.key),
            messages=question.messages,
            sampling=self.sampling,
            seeds=tuple(derive_seed(self.seed, self.name, *one.key) for one in questions),
            choices=question.choices or self.choices,
            json_schema=question.schema,
            thought_tokens=self.thinking.thought_tokens,
            chat_template_kwargs=self.thinking.chat_template_kwargs,
            reasoning_effort=self.thinking.reasoning_effort,
            block=block,
            block_size=block_size,
        )
        outcomes: Sequence[Completion | RequestRejected]
        try:
            outcomes = await self.engine.generate(request)
        except PartlyRejected as rejected:
            outcomes = rejected.outcomes
        except RequestRejected as rejected:
            outcomes = [rejected] * len(questions)
        return [
            JudgeReply(None, str(one), prompt_hash)
            if isinstance(one, RequestRejected)
            else JudgeReply(one, None, prompt_hash)
            for one in outcomes
        ]


@dataclass(frozen=True)
class KeptReplies:
    """What the votes keep of replies about single answers.

    For ``a`` and for ``b``: what was replied, its log-probabilities, its finish reasons and the
    thoughts before it (null where there are none); one for each question about an answer.
    ``ended`` and ``thoughts`` are null where they are not known.
    """

    said: Mapping[str, Sequence[str]]
    logprobs: Mapping[str, Sequence[StoredLogprobs | None]]
    ended: Mapping[str, Sequence[str]] | None = None
    thoughts: Mapping[str, Sequence[str | None]] | None = None

    @classmethod
    def of(cls, of_a: Sequence[JudgeReply], of_b: Sequence[JudgeReply]) -> KeptReplies:
        """From replies, none of which failed."""
        both = {
            name: [(reply.completion, reply.has_thought) for reply in replies if reply.completion]
            for name, replies in (("a", of_a), ("b", of_b))
        }
        return cls(
            {name: [one.text for one, _ in found] for name, found in both.items()},
            {
                name: [store_logprobs(one.choice_logprobs) for one, _ in found]
                for name, found in both.items()
            },
            {name: [one.finish_reason for one, _ in found] for name, found in both.items()},
            {
                name: [(one.reasoning or "") if thought else None for one, thought in found]
                for name, found in both.items()
            },
        )

    @classmethod
    def of_vote(cls, row: Mapping[str, Any]) -> KeptReplies:
        """From a vote (a row of schema VOTE) that has an answer."""
        ended, thoughts = (
            row[name] and json.loads(row[name]) for name in ("finish_reason", "reasoning")
        )
        said, logprobs = (json.loads(row[name]) for name in ("completion", "choice_logprobs"))
        return cls(said, logprobs, ended, thoughts)

    @property
    def fields(self) -> dict[str, Any]:
        """As fields of a vote."""
        found = {
            "finish_reason": json.dumps(self.ended),
            "completion": json.dumps(self.said, ensure_ascii=False),
            "choice_logprobs": json.dumps(self.logprobs, ensure_ascii=False),
        }
        thoughts = [self.thoughts_of(name) for name in ("a", "b")]
        if any(one is not None for of_one in thoughts for one in of_one):
            found["reasoning"] = json.dumps(self.thoughts, ensure_ascii=False)
        return found

    def ended_of(self, name: str) -> Sequence[str | None]:
        """The finish reasons of ``a`` or ``b``."""
        return self.ended[name] if self.ended else [None] * len(self.said[name])

    def thoughts_of(self, name: str) -> Sequence[str | None]:
        """The thoughts about ``a`` or ``b``."""
        return self.thoughts[name] if self.thoughts else [None] * len(self.said[name])


def charged_for(replies: Sequence[JudgeReply]) -> dict[str, Any]:
    """What ``replies`` cost together, as fields of a vote."""
    tokens = [reply.tokens for reply in replies]
    return {
        "prompt_tokens": sum(one.get("prompt_tokens", 0) for one in tokens),
        "completion_tokens": sum(one.get("completion_tokens", 0) for one in tokens),
        "cost": sum(one.get("cost", 0.0) for one in tokens),
        "reasoning_tokens": sum(one.get("reasoning_tokens") or 0 for one in tokens) or None,
    }
