"""The AI judge: a language model that is shown two answers and says which is better."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import jinja2

from data.hashing import content_id, derive_seed, json_hash
from data.protocol import Completion, Engine, Message, Request, RequestRejected, Sampling
from labelers.base import Pair, Preference, Vote, vote_on
from labelers.config import JudgeLabeler
from labelers.judge_folder import Judge, load_judge
from labelers.verdicts import Verdict, from_json, from_logprobs, json_schema

ShownOrder = Literal["ab", "ba"]

_PREFERENCE: dict[ShownOrder, dict[str, Preference]] = {
    "ab": {"first": "a", "second": "b", "tie": "tie", "invalid": "invalid"},
    "ba": {"first": "b", "second": "a", "tie": "tie", "invalid": "invalid"},
}


@dataclass(frozen=True)
class _Question:
    """One ordered pair to ask about; ``failure`` says why it could not be written down."""

    pair: Pair
    order: ShownOrder
    messages: tuple[Message, ...] = ()
    failure: str | None = None


class PairwiseJudge:
    """Asks an engine which of two answers is better, in both orders unless told otherwise.

    A request that the engine or the template refuses is an invalid vote. ``EngineFailed`` passes.
    """

    def __init__(self, config: JudgeLabeler, engine: Engine, *, seed: int) -> None:
        """``seed`` is the run's. Raises ``LabelerError`` if the judge's folder cannot be used."""
        self.name = config.name
        self._config = config
        self._engine = engine
        self._seed = seed
        self._judge: Judge = load_judge(config.judge)
        settings = self._judge.settings
        self._sampling = Sampling(
            temperature=config.temperature, max_tokens=config.max_tokens or settings.max_tokens
        )
        by_token = settings.parser == "token"
        self._choices = settings.verdicts.words if by_token else None
        self._schema = None if by_token else json_schema(settings.verdicts)

    async def label(self, pairs: Sequence[Pair], *, block: str) -> list[Vote]:
        """One vote for each order shown of each pair; all requests are one block of the engine."""
        questions = [self._write(pair, order) for pair in pairs for order in self._orders(pair)]
        asked = sum(question.failure is None for question in questions)
        return list(
            await asyncio.gather(*(self._vote(question, block, asked) for question in questions))
        )

    def _orders(self, pair: Pair) -> tuple[ShownOrder, ...]:
        if self._config.orders == "both":
            return ("ab", "ba")
        drawn = derive_seed(self._seed, self.name, "order", pair.pair_id)
        return ("ab",) if drawn % 2 == 0 else ("ba",)

    def _write(self, pair: Pair, order: ShownOrder) -> _Question:
        first, second = (pair.a, pair.b) if order == "ab" else (pair.b, pair.a)
        # Where the reference itself is on trial, showing it as known to be good gives it away.
        on_trial = "reference" in (first.origin, second.origin)
        reference = None if on_trial else pair.reference
        try:
            messages = self._judge.messages(pair.messages, reference, first.text, second.text)
        except jinja2.TemplateError as error:
            return _Question(pair, order, failure=f"unrenderable_prompt: {error}")
        return _Question(pair, order, messages)

    async def _vote(self, question: _Question, block: str, block_size: int) -> Vote:
        pair, order = question.pair, question.order
        if question.failure is not None:
            return vote_on(
                pair, self.name, order=order, preference="invalid", completion=question.failure
            )
        prompt_hash = json_hash(question.messages)
        request = Request(
            request_id=content_id(block, self.name, pair.pair_id, order),
            messages=question.messages,
            sampling=self._sampling,
            seeds=(derive_seed(self._seed, self.name, pair.pair_id, order),),
            choices=self._choices,
            json_schema=self._schema,
            block=block,
            block_size=block_size,
        )
        try:
            [completion] = await self._engine.generate(request)
        except RequestRejected as rejected:
            return vote_on(
                pair,
                self.name,
                order=order,
                preference="invalid",
                completion=str(rejected),
                prompt_hash=prompt_hash,
            )
        verdict = self._read(completion)
        p_a = verdict.p_first
        if p_a is not None and order == "ba":
            p_a = 1.0 - p_a
        return vote_on(
            pair,
            self.name,
            order=order,
            preference=_PREFERENCE[order][verdict.preferred],
            p_a=p_a,
            rationale=verdict.note,
            completion=completion.text,
            prompt_hash=prompt_hash,
            prompt_tokens=completion.prompt_tokens,
            completion_tokens=completion.completion_tokens,
            cost=completion.cost,
        )

    def _read(self, completion: Completion) -> Verdict:
        settings = self._judge.settings
        if settings.parser == "json":
            return from_json(completion.text, settings.verdicts)
        return from_logprobs(completion.choice_logprobs, settings.verdicts, settings.min_mass)
