"""The listwise judge: a language model that is shown all answers to a prompt and ranks them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import jinja2

from prefloop.data.hashing import content_id
from prefloop.data.protocol import Engine, Sampling
from prefloop.labelers.base import Pair, Preference, Vote, vote_on
from prefloop.labelers.config import JudgeLabeler
from prefloop.labelers.judges.asking import Asker, JudgeReply, Question
from prefloop.labelers.judges.folder import Judge
from prefloop.labelers.judges.prompt_groups import PromptGroup, by_prompt
from prefloop.labelers.judges.rankings import listings, ranking_schema, read_ranking
from prefloop.labelers.judges.settings import ListwiseSettings
from prefloop.labelers.judges.thoughts import NO_ANSWER


@dataclass
class _Listing:
    """One order in which the answers of a prompt were shown, and what came of it."""

    ids: tuple[str, ...]
    reply: JudgeReply
    places: list[int] | None
    note: str | None
    charged: bool = False

    def charge(self) -> dict[str, float]:
        """Tokens and cost, for the first vote only that asks for them."""
        fields = {} if self.charged else self.reply.tokens
        self.charged = True
        return fields


class ListwiseJudge:
    """Asks an engine to rank the answers to a prompt, in an order drawn by seed and in its reverse.

    Each listing gives a vote on each pair of the prompt, and what it cost is written to the first
    of them. A request that the engine or the template refuses makes invalid votes.
    ``EngineFailed`` is left to the caller.
    """

    def __init__(self, config: JudgeLabeler, judge: Judge, engine: Engine, *, seed: int) -> None:
        """``seed`` is the run's; ``judge`` has to be a listwise one."""
        assert isinstance(judge.settings, ListwiseSettings)
        self.name = config.name
        self._config = config
        self._seed = seed
        self._judge = judge
        self._settings = judge.settings
        max_tokens = config.max_tokens or judge.settings.max_tokens
        sampling = Sampling(temperature=config.temperature, max_tokens=max_tokens)
        self._asker = Asker(
            self.name, engine, sampling, seed, choices=None, thinking=config.thinking
        )

    async def label(self, pairs: Sequence[Pair], *, block: str) -> list[Vote]:
        """``votes`` votes for each listing and pair; all requests are one block of the engine."""
        groups = [
            group
            for group in by_prompt(pairs)
            if not (self._settings.needs_reference and group.reference is None)
        ]
        shown = [
            (group, ids, time)
            for group in groups
            for ids in self._listings(group)
            for time in range(self._config.votes)
        ]
        replies = await self._asker.ask([self._write(*each) for each in shown], block=block)
        by_id: dict[str, list[_Listing]] = {}
        for (group, ids, _), reply in zip(shown, replies, strict=True):
            by_id.setdefault(group.prompt_id, []).append(_read(ids, reply))
        return [
            self._vote(pair, listing) for pair in pairs for listing in by_id.get(pair.prompt_id, [])
        ]

    def _listings(self, group: PromptGroup) -> tuple[tuple[str, ...], ...]:
        ids = [answer.candidate_id for answer in group.answers]
        both = listings(ids, self._seed, self.name, "listing", group.prompt_id)
        return both if self._config.orders == "both" else both[:1]

    def _write(self, group: PromptGroup, ids: tuple[str, ...], time: int) -> Question:
        key = (content_id(group.prompt_id, *ids), *([str(time)] if time else []))
        most = self._settings.max_candidates
        if len(ids) > most:
            return Question(
                key, failure=f"too_many_candidates: {len(ids)}; the judge ranks {most} at most"
            )
        texts = {answer.candidate_id: answer.text for answer in group.answers}
        try:
            messages = self._judge.listing(
                group.messages, group.reference, [texts[one] for one in ids]
            )
        except jinja2.TemplateError as error:
            return Question(key, failure=f"unrenderable_prompt: {error}")
        return Question(key, messages, ranking_schema(len(ids)))

    def _vote(self, pair: Pair, listing: _Listing) -> Vote:
        reply = listing.reply
        a, b = (listing.ids.index(each.candidate_id) for each in (pair.a, pair.b))
        preference: Preference = "invalid"
        if listing.places is not None:
            preference = ranked(listing.places[a], listing.places[b])
        return vote_on(
            pair,
            self.name,
            order="ab" if a < b else "ba",
            preference=preference,
            rationale=listing.note,
            completion=reply.failure if reply.completion is None else reply.completion.text,
            finish_reason=reply.completion and reply.completion.finish_reason,
            reasoning=reply.completion and reply.completion.reasoning,
            prompt_hash=reply.prompt_hash,
            **listing.charge(),
        )


def ranked(place_a: int, place_b: int) -> Preference:
    """The preference between two places in a ranking; the lower is the better."""
    return "a" if place_a < place_b else "b" if place_b < place_a else "tie"


def _read(ids: tuple[str, ...], reply: JudgeReply) -> _Listing:
    if reply.completion is None:
        return _Listing(ids, reply, None, None)
    try:
        if reply.has_thought and not reply.completion.text.strip():
            raise ValueError(NO_ANSWER)
        places, rationale = read_ranking(
            reply.completion.text, len(ids), reply.completion.finish_reason
        )
    except ValueError as error:
        return _Listing(ids, reply, None, f"unparsable: {error}")
    return _Listing(ids, reply, places, rationale)
