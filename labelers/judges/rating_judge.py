"""The rating judge: a language model that rates each answer by itself, aspect by aspect."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import jinja2

from prefloop.data.protocol import Engine, Sampling
from prefloop.labelers.base import Answer, Pair, Vote, vote_on
from prefloop.labelers.config import JudgeLabeler
from prefloop.labelers.judges.asking import Asker, JudgeReply, Question
from prefloop.labelers.judges.folder import Judge
from prefloop.labelers.judges.prompt_groups import PromptGroup, by_prompt
from prefloop.labelers.judges.ratings import (
    Rating,
    compare,
    from_ratings_json,
    from_ratings_logprobs,
    ratings_schema,
    word_logprobs,
)
from prefloop.labelers.judges.settings import RatingSettings
from prefloop.labelers.judges.stored_logprobs import (
    StoredLogprobs,
    restore_logprobs,
    store_logprobs,
)
from prefloop.labelers.judges.thoughts import NO_ANSWER


class RatingJudge:
    """Asks an engine to rate each answer, once however many pairs it is in.

    What an answer's ratings cost is written to the first vote on it. A request that the engine or
    the template refuses makes the votes on that answer invalid. ``EngineFailed`` is left to the
    caller.
    """

    def __init__(self, config: JudgeLabeler, judge: Judge, engine: Engine, *, seed: int) -> None:
        """``seed`` is the run's; ``judge`` has to be a rating one."""
        assert isinstance(judge.settings, RatingSettings)
        self.name = config.name
        self._judge = judge
        self._settings = judge.settings
        by_token = judge.settings.parser == "token"
        self._aspects: list[str | None] = [*judge.settings.aspects] if by_token else [None]
        self._schema = None if by_token else ratings_schema(judge.settings)
        self._asker = Asker(
            self.name,
            engine,
            Sampling(
                temperature=config.temperature,
                max_tokens=config.max_tokens or judge.settings.max_tokens,
            ),
            seed,
            choices=judge.settings.words if by_token else None,
            thinking=config.thinking,
        )

    async def label(self, pairs: Sequence[Pair], *, block: str) -> list[Vote]:
        """One vote for each pair; all requests are one block of the engine."""
        shown = [
            (group, answer, aspect)
            for group in by_prompt(pairs)
            if not (self._settings.needs_reference and group.reference is None)
            for answer in group.answers
            for aspect in self._aspects
        ]
        replies = await self._asker.ask([self._write(*each) for each in shown], block=block)
        rated: dict[tuple[str, str], list[JudgeReply]] = {}
        for (group, answer, _), reply in zip(shown, replies, strict=True):
            rated.setdefault((group.prompt_id, answer.candidate_id), []).append(reply)
        uncharged = set(rated)
        votes = []
        for pair in pairs:
            keys = [(pair.prompt_id, answer.candidate_id) for answer in (pair.a, pair.b)]
            if not all(key in rated for key in keys):
                continue
            charged = [reply for key in keys if key in uncharged for reply in rated[key]]
            uncharged.difference_update(keys)
            votes.append(self._vote(pair, rated[keys[0]], rated[keys[1]], charged))
        return votes

    def _write(self, group: PromptGroup, answer: Answer, aspect: str | None) -> Question:
        key = (group.prompt_id, answer.candidate_id, aspect or "")
        try:
            messages = self._judge.rating(group.messages, group.reference, answer.text, aspect)
        except jinja2.TemplateError as error:
            return Question(key, failure=f"unrenderable_prompt: {error}")
        return Question(key, messages, self._schema)

    def _vote(
        self, pair: Pair, of_a: list[JudgeReply], of_b: list[JudgeReply], charged: list[JudgeReply]
    ) -> Vote:
        details: dict[str, Any] = {
            "prompt_tokens": sum(reply.tokens.get("prompt_tokens", 0) for reply in charged),
            "completion_tokens": sum(reply.tokens.get("completion_tokens", 0) for reply in charged),
            "cost": sum(reply.tokens.get("cost", 0.0) for reply in charged),
        }
        thought = sum(reply.tokens.get("reasoning_tokens") or 0 for reply in charged)
        details["reasoning_tokens"] = thought or None
        failure = next((reply.failure for reply in [*of_a, *of_b] if reply.failure), None)
        if failure is not None:
            details |= {"preference": "invalid", "completion": failure}
        else:
            said = {"a": _said(of_a), "b": _said(of_b)}
            kept = {"a": _kept(of_a), "b": _kept(of_b)}
            ended = {"a": _ended(of_a), "b": _ended(of_b)}
            thoughts = {"a": _thoughts(of_a), "b": _thoughts(of_b)}
            details |= rating_vote(said, kept, self._settings, ended, thoughts)
            if any(one is not None for of_one in thoughts.values() for one in of_one):
                details["reasoning"] = json.dumps(thoughts, ensure_ascii=False)
            details["finish_reason"] = json.dumps(ended)
            details["completion"] = json.dumps(said, ensure_ascii=False)
            details["choice_logprobs"] = json.dumps(kept, ensure_ascii=False)
        return vote_on(pair, self.name, order="none", **details)


def rating_vote(
    said: Mapping[str, Sequence[str]],
    kept: Mapping[str, Sequence[StoredLogprobs | None]],
    settings: RatingSettings,
    ended: Mapping[str, Sequence[str]] | None = None,
    thoughts: Mapping[str, Sequence[str | None]] | None = None,
) -> dict[str, Any]:
    """Preference, soft vote, scores and rationale of a vote, by the names of their fields.

    ``said``, ``kept``, ``ended`` and ``thoughts`` hold, for ``a`` and for ``b``, the judge's
    answers, their log-probabilities, their finish reasons and the thoughts before them (null where
    there are none, or where not known): one for each aspect, or one in all where the judge answers
    in JSON.
    """
    ratings: dict[str, Rating] = {}
    notes: list[str] = []
    for name in ("a", "b"):
        thought = thoughts[name] if thoughts else [None] * len(said[name])
        try:
            if any(
                one is not None and not text.strip()
                for one, text in zip(thought, said[name], strict=True)
            ):
                raise ValueError(NO_ANSWER)
            if settings.parser == "json":
                ratings[name] = from_ratings_json(
                    said[name][0], settings, ended[name][0] if ended else None
                )
            else:
                logprobs = [
                    restore_logprobs(each)
                    if one is None or each is not None
                    else word_logprobs(text, settings)
                    for each, one, text in zip(kept[name], thought, said[name], strict=True)
                ]
                ratings[name] = from_ratings_logprobs(logprobs, settings, said[name])
        except ValueError as error:
            notes.append(f"{name}: {error}")
        else:
            if ratings[name].rationale:
                notes.append(f"{name}: {ratings[name].rationale}")
    scores = {f"score_{name}": rating.score for name, rating in ratings.items()}
    rationale = "\n".join(notes) or None
    if len(ratings) < 2:
        return {"preference": "invalid", "rationale": rationale, **scores}
    preference, p_a = compare(ratings["a"], ratings["b"])
    soft = p_a if settings.parser == "token" else None
    return {"preference": preference, "p_a": soft, "rationale": rationale, **scores}


def _said(replies: Sequence[JudgeReply]) -> list[str]:
    return [reply.completion.text for reply in replies if reply.completion is not None]


def _ended(replies: Sequence[JudgeReply]) -> list[str]:
    return [reply.completion.finish_reason for reply in replies if reply.completion is not None]


def _thoughts(replies: Sequence[JudgeReply]) -> list[str | None]:
    return [
        (reply.completion.reasoning or "") if reply.has_thought else None
        for reply in replies
        if reply.completion is not None
    ]


def _kept(replies: Sequence[JudgeReply]) -> list[StoredLogprobs | None]:
    return [
        store_logprobs(reply.completion.choice_logprobs)
        for reply in replies
        if reply.completion is not None
    ]
