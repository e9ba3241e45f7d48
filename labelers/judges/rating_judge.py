"""The rating judge: a language model that rates each answer by itself, aspect by aspect."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jinja2

from prefloop.data.protocol import Engine, Sampling
from prefloop.labelers.base import Answer, Pair, Vote, vote_on
from prefloop.labelers.config import JudgeLabeler
from prefloop.labelers.judges.asking import (
    Asker,
    JudgeReply,
    KeptReplies,
    Question,
    charged_for,
)
from prefloop.labelers.judges.folder import Judge
from prefloop.labelers.judges.prompt_groups import PromptGroup, by_prompt
from prefloop.labelers.judges.ratings import (
    Rating,
    compare,
    from_ratings_json,
    from_ratings_logprobs,
    mean_rating,
    ratings_schema,
    word_logprobs,
)
from prefloop.labelers.judges.settings import RatingSettings
from prefloop.labelers.judges.stored_logprobs import restore_logprobs
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
        self._votes = config.votes
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
            (group, answer, aspect, time)
            for group in by_prompt(pairs)
            if not (self._settings.needs_reference and group.reference is None)
            for answer in group.answers
            for aspect in self._aspects
            for time in range(self._votes)
        ]
        replies = await self._asker.ask([self._write(*each) for each in shown], block=block)
        rated: dict[tuple[str, str], list[JudgeReply]] = {}
        for (group, answer, *_), reply in zip(shown, replies, strict=True):
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

    def _write(self, group: PromptGroup, answer: Answer, aspect: str | None, time: int) -> Question:
        again = (str(time),) if time else ()
        key = (group.prompt_id, answer.candidate_id, aspect or "", *again)
        try:
            messages = self._judge.rating(group.messages, group.reference, answer.text, aspect)
        except jinja2.TemplateError as error:
            return Question(key, failure=f"unrenderable_prompt: {error}")
        return Question(key, messages, self._schema)

    def _vote(
        self, pair: Pair, of_a: list[JudgeReply], of_b: list[JudgeReply], charged: list[JudgeReply]
    ) -> Vote:
        details = charged_for(charged)
        failure = next((reply.failure for reply in [*of_a, *of_b] if reply.failure), None)
        if failure is not None:
            details |= {"preference": "invalid", "completion": failure}
        else:
            kept = KeptReplies.of(of_a, of_b)
            details |= kept.fields
            details |= rating_vote(kept, self._settings)
        return vote_on(pair, self.name, order="none", **details)


def rating_vote(kept: KeptReplies, settings: RatingSettings) -> dict[str, Any]:
    """Preference, soft vote, scores and rationale of a vote, by the names of their fields.

    There is a reply for each aspect, or, where the judge answers in JSON, one for each time that it
    was asked about all of them.
    """
    ratings: dict[str, Rating] = {}
    notes: list[str] = []
    for name in ("a", "b"):
        said, thought = kept.said[name], kept.thoughts_of(name)
        try:
            silent = [
                one is not None and not text.strip()
                for one, text in zip(thought, said, strict=True)
            ]
            if settings.parser == "json":
                ratings[name] = mean_rating(
                    [
                        NO_ANSWER if nothing else _from_json(text, ended, settings)
                        for nothing, text, ended in zip(
                            silent, said, kept.ended_of(name), strict=True
                        )
                    ]
                )
            elif any(silent):
                raise ValueError(NO_ANSWER)
            else:
                logprobs = [
                    restore_logprobs(each)
                    if one is None or each is not None
                    else word_logprobs(text, settings)
                    for each, one, text in zip(kept.logprobs[name], thought, said, strict=True)
                ]
                ratings[name] = from_ratings_logprobs(logprobs, settings, said)
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
    soft = p_a if settings.parser == "token" or len(kept.said["a"]) > 1 else None
    return {"preference": preference, "p_a": soft, "rationale": rationale, **scores}


def _from_json(text: str, finish_reason: str | None, settings: RatingSettings) -> Rating | str:
    """A rating, or why there is none."""
    try:
        return from_ratings_json(text, settings, finish_reason)
    except ValueError as error:
        return str(error)
