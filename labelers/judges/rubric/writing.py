"""Criteria written by a model, once for each prompt and before any answer to it is seen."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import jinja2

from prefloop.data.prompts.criteria import Criterion, criteria_of
from prefloop.data.protocol import Completion, Engine, Sampling
from prefloop.labelers.config import MOST_WRITTEN, WrittenCriteria
from prefloop.labelers.judges.asking import Asker, JudgeReply, Question
from prefloop.labelers.judges.folder import Judge
from prefloop.labelers.judges.json_answers import json_objects, single_values
from prefloop.labelers.judges.prompt_groups import PromptGroup
from prefloop.labelers.judges.rubric.rubric_shelf import RubricShelf
from prefloop.labelers.judges.thoughts import NO_ANSWER

UNWRITTEN = "unwritten_rubric"
"""Why there is no judgment where no criteria came of the writing."""


@dataclass(frozen=True)
class WrittenRubric:
    """The criteria of a prompt, or in ``failure`` why there are none; ``reply`` is what was paid
    for now, null where they were there."""

    criteria: tuple[Criterion, ...]
    failure: str | None = None
    reply: JudgeReply | None = None


@dataclass(frozen=True)
class WritingDesk:
    """What writing takes besides the judge: the engine that serves the writing model, and where
    what is written is kept; without a shelf it lasts as long as the labeler."""

    engine: Engine
    shelf: RubricShelf | None = None


class RubricWriter:
    """Asks an engine for the criteria of prompts that have none yet. The question holds the
    conversation, and a reference answer that is not itself on trial; no candidate.

    What fails is not kept, and is asked for again by the next who needs it.
    """

    def __init__(
        self, name: str, config: WrittenCriteria, judge: Judge, desk: WritingDesk, *, seed: int
    ) -> None:
        """``name`` is the labeler's, ``seed`` the run's."""
        self._config = config
        self._judge = judge
        self._shelf = desk.shelf
        self._asker = Asker(
            f"{name}/criteria",
            desk.engine,
            Sampling(temperature=config.temperature, max_tokens=config.max_tokens),
            seed,
            choices=None,
            thinking=config.thinking,
        )
        self._known: dict[str, tuple[Criterion, ...]] = {}
        self._writing = asyncio.Lock()

    async def rubrics(
        self, groups: Sequence[PromptGroup], *, block: str
    ) -> dict[str, WrittenRubric]:
        """The rubric of each prompt. Those to be written are one ``block`` of the engine, and are
        kept before this returns."""
        # One after the other: two blocks may have a prompt in common.
        async with self._writing:
            found = {}
            missing = []
            for group in groups:
                known = self._of(group.prompt_id)
                if known is None:
                    missing.append(group)
                else:
                    found[group.prompt_id] = WrittenRubric(known)
            questions = [self._question(group) for group in missing]
            replies = await self._asker.ask(questions, block=f"{block}/criteria")
            kept = {}
            for group, reply in zip(missing, replies, strict=True):
                written = _read(reply)
                found[group.prompt_id] = written
                if written.failure is None and reply.completion is not None:
                    kept[group.prompt_id] = (written.criteria, reply.completion.text)
            if self._shelf is not None:
                self._shelf.keep(kept)
            for prompt_id, (criteria, _) in kept.items():
                shelved = self._shelf.of(prompt_id) if self._shelf else None
                self._known[prompt_id] = shelved or criteria
                found[prompt_id] = replace(found[prompt_id], criteria=self._known[prompt_id])
            return found

    def _of(self, prompt_id: str) -> tuple[Criterion, ...] | None:
        known = self._known.get(prompt_id)
        if known is None and self._shelf is not None:
            known = self._shelf.of(prompt_id)
        return known

    def _question(self, group: PromptGroup) -> Question:
        key = (group.prompt_id,)
        try:
            messages = self._judge.ask_for_criteria(
                group.messages, group.reference, self._config.most
            )
        except jinja2.TemplateError as error:
            return Question(key, failure=f"unrenderable_prompt: {error}")
        return Question(key, messages, writing_schema(self._config.most))


def writing_schema(most: int) -> dict[str, Any]:
    """The JSON schema of an answer with so many criteria at most."""
    criterion = {
        "type": "object",
        "properties": {
            "text": {"type": "string"},
            "weight": {"type": "integer", "enum": [5, 4, 3, 2, 1, -1, -2, -3, -4, -5]},
            "veto": {"type": "boolean"},
        },
        "required": ["text", "weight", "veto"],
        "additionalProperties": False,
    }
    criteria = {"type": "array", "items": criterion, "minItems": 1, "maxItems": most}
    return {
        "type": "object",
        "properties": {"criteria": criteria},
        "required": ["criteria"],
        "additionalProperties": False,
    }


def read_criteria(completion: Completion) -> tuple[Criterion, ...]:
    """The criteria in a JSON object with a list of them. Raises ``ValueError``, saying why, where
    there are none."""
    cut = completion.finish_reason == "length"
    said = single_values(json_objects(completion.text, cut=cut)).get("criteria")
    if not isinstance(said, list):
        raise ValueError("there is no list of criteria")
    if len(said) > MOST_WRITTEN:
        raise ValueError(f"there are {len(said)} criteria, more than {MOST_WRITTEN}")
    return criteria_of([_as_object(one) for one in said])


def _as_object(value: Any) -> Any:
    """An object as it was read: a list of pairs of key and value."""
    if not isinstance(value, list) or not all(isinstance(one, tuple) for one in value):
        return value
    return single_values([value])


def _read(reply: JudgeReply) -> WrittenRubric:
    if reply.completion is None:
        return WrittenRubric((), f"{UNWRITTEN}: {reply.failure}", reply)
    try:
        if reply.has_thought and not reply.completion.text.strip():
            raise ValueError(NO_ANSWER)
        return WrittenRubric(read_criteria(reply.completion), None, reply)
    except ValueError as error:
        return WrittenRubric((), f"{UNWRITTEN}: {error}", reply)
