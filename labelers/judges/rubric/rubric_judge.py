"""The judge with a rubric: a language model that judges each answer by itself, criterion by
criterion."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import jinja2

from prefloop.data.prompts.criteria import Criterion, criteria_of
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
from prefloop.labelers.judges.rubric.asked_criteria import BAD_RUBRIC, criteria_for
from prefloop.labelers.judges.rubric.values import (
    Judgment,
    choice_logprobs,
    compare_judged,
    criteria_schema,
    from_criteria_json,
    from_criteria_logprobs,
    mean_judgment,
)
from prefloop.labelers.judges.rubric.writing import RubricWriter, WrittenRubric
from prefloop.labelers.judges.settings import RubricSettings, words_of
from prefloop.labelers.judges.stored_logprobs import restore_logprobs
from prefloop.labelers.judges.thoughts import NO_ANSWER

_Key = tuple[str, str]
"""Prompt and candidate."""


class RubricJudge:
    """Asks an engine how far each answer meets each criterion, once however many pairs it is in.

    No opinion on prompts without criteria. What the questions about an answer cost is written to
    the first vote on it, and what writing the criteria cost to the first on the prompt. A request
    that the engine or the template refuses makes the votes on that answer invalid, and so do
    criteria that cannot be read. ``EngineFailed`` is left to the caller.
    """

    def __init__(
        self,
        config: JudgeLabeler,
        judge: Judge,
        engine: Engine,
        *,
        seed: int,
        writer: RubricWriter | None = None,
    ) -> None:
        """``seed`` is the run's; ``judge`` has to be one with a rubric. ``writer`` writes the
        criteria, where the config says so."""
        assert isinstance(judge.settings, RubricSettings)
        self.name = config.name
        self._config = config
        self._judge = judge
        self._settings = judge.settings
        self._writer = writer
        self._asker = Asker(
            self.name,
            engine,
            Sampling(
                temperature=config.temperature,
                max_tokens=config.max_tokens or judge.settings.max_tokens,
            ),
            seed,
            choices=None,
            thinking=config.thinking,
        )

    async def label(self, pairs: Sequence[Pair], *, block: str) -> list[Vote]:
        """One vote for each pair; all requests are one block of the engine."""
        groups = [
            group
            for group in by_prompt(pairs)
            if not (self._settings.needs_reference and group.reference is None)
        ]
        rubrics = await self._rubrics(groups, block=block)
        asked: list[_Key] = []
        questions: list[Question] = []
        for group in groups:
            rubric = rubrics.get(group.prompt_id)
            if rubric is None:
                continue
            for answer in group.answers:
                of_answer = self._questions(group, answer, rubric)
                questions += of_answer
                asked += [(group.prompt_id, answer.candidate_id)] * len(of_answer)
        replies: dict[_Key, list[JudgeReply]] = {}
        for key, reply in zip(asked, await self._asker.ask(questions, block=block), strict=True):
            replies.setdefault(key, []).append(reply)
        uncharged = set(replies)
        written = {prompt: one.reply for prompt, one in rubrics.items() if one.reply}
        votes = []
        for pair in pairs:
            if pair.prompt_id not in rubrics:
                continue
            keys = [(pair.prompt_id, one.candidate_id) for one in (pair.a, pair.b)]
            charged = [reply for key in keys if key in uncharged for reply in replies[key]]
            uncharged.difference_update(keys)
            if pair.prompt_id in written:
                charged.append(written.pop(pair.prompt_id))
            of_both = {"a": replies[keys[0]], "b": replies[keys[1]]}
            votes.append(self._vote(pair, rubrics[pair.prompt_id].criteria, of_both, charged))
        return votes

    async def _rubrics(
        self, groups: Sequence[PromptGroup], *, block: str
    ) -> dict[str, WrittenRubric]:
        """The criteria of each prompt by its id, or why there are none; nothing of prompts on which
        the judge has no opinion."""
        if self._writer is not None:
            return await self._writer.rubrics(groups, block=block)
        found = {}
        for group in groups:
            try:
                criteria = criteria_for(self._config, self._judge, group.metadata)
            except ValueError as error:
                found[group.prompt_id] = WrittenRubric((), f"{BAD_RUBRIC}: {error}")
                continue
            if criteria is not None:
                found[group.prompt_id] = WrittenRubric(criteria)
        return found

    def _questions(
        self, group: PromptGroup, answer: Answer, rubric: WrittenRubric
    ) -> list[Question]:
        """What is asked about an answer: one question a criterion, or as many about all of them as
        the judge is to vote."""
        key = (group.prompt_id, answer.candidate_id)
        criteria = rubric.criteria
        if rubric.failure is not None:
            return [Question(key, failure=rubric.failure)]
        by_token = self._settings.parser == "token"
        found = []
        asked = [(each,) for each in criteria] if by_token else [criteria] * self._config.votes
        for time, one in enumerate(asked):
            again = (str(time),) if time and not by_token else ()
            named = (*key, *(each.text for each in one), *again)
            try:
                messages = self._judge.criteria(group.messages, group.reference, answer.text, one)
            except jinja2.TemplateError as error:
                found.append(Question(named, failure=f"unrenderable_prompt: {error}"))
                continue
            schema = None if by_token else criteria_schema(one)
            choices = words_of(len(one[0].choices)) if by_token else None
            found.append(Question(named, messages, schema, choices=choices))
        return found

    def _vote(
        self,
        pair: Pair,
        criteria: tuple[Criterion, ...],
        replies: Mapping[str, list[JudgeReply]],
        charged: list[JudgeReply],
    ) -> Vote:
        details = charged_for(charged)
        every = [*replies["a"], *replies["b"]]
        failure = next((reply.failure for reply in every if reply.failure), None)
        if failure is not None:
            details |= {"preference": "invalid", "completion": failure}
        else:
            kept = KeptReplies.of(replies["a"], replies["b"])
            details |= kept.fields
            details |= rubric_vote(kept, self._settings, criteria, _source(self._config))
        return vote_on(pair, self.name, order="none", **details)


def _source(config: JudgeLabeler) -> str:
    return "written" if config.writer else str(config.criteria)


def rubric_vote(
    kept: KeptReplies, settings: RubricSettings, criteria: Sequence[Criterion], source: str
) -> dict[str, Any]:
    """Preference, soft vote, scores, rationale and criteria of a vote, by the names of its fields.

    ``source``: where the criteria are from, ``judge``, ``prompt`` or ``written``.
    """
    judged = {name: _judged(kept, name, settings, criteria) for name in ("a", "b")}
    notes = [
        f"{name}: {one.problem or one.rationale}"
        for name, one in judged.items()
        if one.problem or one.rationale
    ]
    scores = {f"score_{name}": one.score for name, one in judged.items() if not one.problem}
    found = {
        **scores,
        "rationale": "\n".join(notes) or None,
        "criteria": _told(criteria, source, judged["a"], judged["b"]),
    }
    if len(scores) < 2:
        return {"preference": "invalid", **found}
    preference, p_a = compare_judged(judged["a"], judged["b"])
    soft = settings.parser == "token" or len(kept.said["a"]) > 1
    return {"preference": preference, "p_a": p_a if soft else None, **found}


def reread_rubric(row: Mapping[str, Any], settings: RubricSettings) -> dict[str, Any]:
    """As :func:`rubric_vote`, of a vote that was kept (a row of schema VOTE).

    Criteria that are the judge's have the names, weights and vetoes that they have in its folder
    now.
    """
    stored = json.loads(row["criteria"])
    source = str(stored["from"])
    criteria = criteria_of(
        [{key: one[key] for key in Criterion.model_fields} for one in stored["criteria"]]
    )
    if source == "judge" and _asked(criteria) == _asked(settings.criteria):
        criteria = settings.criteria
    return rubric_vote(KeptReplies.of_vote(row), settings, criteria, source)


def _asked(criteria: Sequence[Criterion]) -> list[tuple[str, tuple[str, ...]]]:
    """What of criteria is told to the judge."""
    return [(one.text, one.choices) for one in criteria]


def _judged(
    kept: KeptReplies, name: str, settings: RubricSettings, criteria: Sequence[Criterion]
) -> Judgment:
    """What was said of one answer, ``a`` or ``b``."""
    said, thoughts = kept.said[name], kept.thoughts_of(name)
    silent = [
        one is not None and not text.strip() for one, text in zip(thoughts, said, strict=True)
    ]
    unknown = Judgment(tuple(criteria), (None,) * len(criteria), NO_ANSWER)
    if settings.parser == "json":
        return mean_judgment(
            [
                unknown if nothing else from_criteria_json(text, criteria, ended)
                for nothing, text, ended in zip(silent, said, kept.ended_of(name), strict=True)
            ]
        )
    if any(silent):
        return unknown
    logprobs = [
        restore_logprobs(each)
        if thought is None or each is not None
        else choice_logprobs(text, len(one.choices))
        for one, each, thought, text in zip(
            criteria, kept.logprobs[name], thoughts, said, strict=True
        )
    ]
    return from_criteria_logprobs(logprobs, criteria, settings.min_mass, said)


def _told(criteria: Sequence[Criterion], source: str, a: Judgment, b: Judgment) -> str:
    """The field ``criteria`` of a vote: of each criterion what it is, and its values for a and b;
    of a veto also whether they fail it."""
    told = []
    for place, one in enumerate(criteria):
        entry = one.model_dump(mode="json")
        for name, judged in (("a", a), ("b", b)):
            entry[name] = judged.values[place]
            if one.veto:
                entry[f"{name}_fails"] = judged.fails(place)
        told.append(entry)
    return json.dumps({"from": source, "criteria": told}, ensure_ascii=False)
