"""The pairwise judge: a language model that is shown two answers and says which is better."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Literal

import jinja2

from prefloop.data.hashing import derive_seed
from prefloop.data.protocol import Engine, Sampling
from prefloop.labelers.base import Pair, Preference, Vote, vote_on
from prefloop.labelers.config import JudgeLabeler
from prefloop.labelers.judges.asking import Asker, JudgeReply, Question
from prefloop.labelers.judges.folder import Judge
from prefloop.labelers.judges.settings import PairwiseSettings
from prefloop.labelers.judges.stored_logprobs import store_logprobs
from prefloop.labelers.judges.verdicts import Verdict, json_schema, read_verdict

ShownOrder = Literal["ab", "ba"]

_PREFERENCE: dict[ShownOrder, dict[str, Preference]] = {
    "ab": {"first": "a", "second": "b", "tie": "tie", "invalid": "invalid"},
    "ba": {"first": "b", "second": "a", "tie": "tie", "invalid": "invalid"},
}


class PairwiseJudge:
    """Asks an engine which of two answers is better, in both orders unless told otherwise.

    A request that the engine or the template refuses is an invalid vote. ``EngineFailed`` is left
    to the caller.
    """

    def __init__(self, config: JudgeLabeler, judge: Judge, engine: Engine, *, seed: int) -> None:
        """``seed`` is the run's; ``judge`` has to be a pairwise one."""
        assert isinstance(judge.settings, PairwiseSettings)
        self.name = config.name
        self._config = config
        self._seed = seed
        self._judge = judge
        self._settings = judge.settings
        settings = judge.settings
        self._asker = Asker(
            self.name,
            engine,
            Sampling(
                temperature=config.temperature, max_tokens=config.max_tokens or settings.max_tokens
            ),
            seed,
            choices=settings.verdicts.words if settings.parser == "token" else None,
            thinking=config.thinking,
        )
        self._schema = json_schema(settings.verdicts) if settings.parser == "json" else None

    async def label(self, pairs: Sequence[Pair], *, block: str) -> list[Vote]:
        """``votes`` votes for each order shown of each pair; all requests are one block of the
        engine."""
        shown = [
            (pair, order, time)
            for pair in pairs
            if not (self._settings.needs_reference and _shown_reference(pair) is None)
            for order in self._orders(pair)
            for time in range(self._config.votes)
        ]
        replies = await self._asker.ask([self._write(*each) for each in shown], block=block)
        return [
            self._vote(pair, order, reply)
            for (pair, order, _), reply in zip(shown, replies, strict=True)
        ]

    def _orders(self, pair: Pair) -> tuple[ShownOrder, ...]:
        if self._config.orders == "both":
            return ("ab", "ba")
        drawn = derive_seed(self._seed, self.name, "order", pair.pair_id)
        return ("ab",) if drawn % 2 == 0 else ("ba",)

    def _write(self, pair: Pair, order: ShownOrder, time: int) -> Question:
        key = (pair.pair_id, order, *([str(time)] if time else []))
        first, second = (pair.a, pair.b) if order == "ab" else (pair.b, pair.a)
        principles = self._judge.drawn_principles(self._seed, self.name, "principles", pair.pair_id)
        try:
            messages = self._judge.pairwise(
                pair.messages, _shown_reference(pair), first.text, second.text, principles
            )
        except jinja2.TemplateError as error:
            return Question(key, failure=f"unrenderable_prompt: {error}")
        return Question(key, messages, self._schema)

    def _vote(self, pair: Pair, order: ShownOrder, reply: JudgeReply) -> Vote:
        completion = reply.completion
        if completion is None:
            return vote_on(
                pair,
                self.name,
                order=order,
                preference="invalid",
                completion=reply.failure,
                prompt_hash=reply.prompt_hash,
            )
        verdict = read_verdict(
            completion.text,
            completion.choice_logprobs,
            self._settings,
            completion.finish_reason,
            has_thought=reply.has_thought,
        )
        kept = store_logprobs(completion.choice_logprobs)
        preference, p_a = about_a_and_b(verdict, order)
        return vote_on(
            pair,
            self.name,
            order=order,
            preference=preference,
            p_a=p_a,
            rationale=verdict.note,
            completion=completion.text,
            finish_reason=completion.finish_reason,
            choice_logprobs=None if kept is None else json.dumps(kept, ensure_ascii=False),
            prompt_hash=reply.prompt_hash,
            reasoning=completion.reasoning,
            **reply.tokens,
        )


def about_a_and_b(verdict: Verdict, order: ShownOrder) -> tuple[Preference, float | None]:
    """``preference`` and ``p_a`` of a vote from a verdict about the answers as shown."""
    p_a = verdict.p_first
    if p_a is not None and order == "ba":
        p_a = 1.0 - p_a
    return _PREFERENCE[order][verdict.preferred], p_a


def _shown_reference(pair: Pair) -> str | None:
    """The reference answer that the judge is shown as known to be good: none where it is itself one
    of the two answers, as that would give it away."""
    return None if "reference" in (pair.a.origin, pair.b.origin) else pair.reference
