"""The criteria that people are asked about beside the verdict, and what they say of them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from prefloop.data.prompts.criteria import Criterion
from prefloop.data.utf8 import one_line
from prefloop.labelers.config import JudgeLabeler, LabelConfig
from prefloop.labelers.judges.folder import load_judge
from prefloop.labelers.judges.settings import RubricSettings, words_of

MOST_ASKED = 8
"""Criteria that people are asked about at most: each is two more questions a pair."""
SIDES = ("a", "b")
"""The answers, as they stand in Argilla."""
_LONGEST_TITLE = 500
"""Characters that Argilla takes for a title, and for the text of a choice."""


@dataclass(frozen=True)
class AskedCriteria:
    """What people are asked about each answer of every pair of a review."""

    criteria: tuple[Criterion, ...] = ()
    left_out: tuple[Criterion, ...] = ()
    """Criteria that hold for all pairs too, and were too many."""

    @property
    def lines(self) -> list[str]:
        """What is to be said of it to who pushes; nothing where nothing is asked."""
        if not self.criteria:
            return []
        asked = f"people are also asked about {len(self.criteria)} criteria of the judges' rubrics"
        if not self.left_out:
            return [asked]
        names = ", ".join(one.label for one in self.left_out)
        return [f"{asked}, the {MOST_ASKED} that weigh most; they are not asked about: {names}"]


@dataclass(frozen=True)
class CriterionQuestion:
    """One criterion of one answer, as Argilla is to ask about it. It may be left unanswered."""

    name: str
    title: str
    labels: Mapping[str, str]
    """What can be chosen, by the value that is kept."""


def criteria_to_ask(label: LabelConfig | None) -> AskedCriteria:
    """The criteria of judges with a rubric that hold for all prompts, each once; of too many those
    that weigh most, vetoes first. Questions belong to a dataset of Argilla, so criteria of single
    prompts cannot be asked about.

    Raises ``LabelerError`` where a judge cannot be read.
    """
    found: dict[tuple[str, tuple[str, ...]], Criterion] = {}
    for labeler in label.labelers if label else ():
        if not isinstance(labeler, JudgeLabeler) or labeler.criteria != "judge":
            continue
        settings = load_judge(labeler.judge).settings
        if isinstance(settings, RubricSettings):
            for one in settings.criteria:
                found.setdefault((one.text, one.choices), one)
    by_weight = sorted(found.values(), key=lambda one: (not one.veto, -abs(one.weight)))
    asked = by_weight[:MOST_ASKED]
    return AskedCriteria(
        tuple(one for one in found.values() if one in asked), tuple(by_weight[MOST_ASKED:])
    )


def question_name(place: int, side: str) -> str:
    """What Argilla calls the question about criterion ``place`` of the answer ``side``."""
    return f"criterion_{place + 1}_{side}"


def criterion_questions(criteria: Sequence[Criterion]) -> list[CriterionQuestion]:
    """Two questions a criterion, with its choices from the worst on as a judge sees them."""
    return [
        CriterionQuestion(
            question_name(place, side),
            _title(side, one),
            {
                word: choice[:_LONGEST_TITLE]
                for word, choice in zip(words_of(len(one.choices)), one.choices, strict=True)
            },
        )
        for place, one in enumerate(criteria)
        for side in SIDES
    ]


def said_of_criteria(values: Mapping[str, Any], criteria: Sequence[Criterion]) -> str | None:
    """What a response (its ``values``, as Argilla has them) says, as RESPONSE keeps it: a JSON list
    with the number of the choice for each criterion and answer; null where it says nothing."""
    said = []
    for place, one in enumerate(criteria):
        words = words_of(len(one.choices))
        chosen = {side: (values.get(question_name(place, side)) or {}).get("value")
                  for side in SIDES}  # fmt: skip
        said.append({side: int(word) if word in words else None for side, word in chosen.items()})
    if not any(number for each in said for number in each.values()):
        return None
    return json.dumps(said)


def told_by_person(said: str | None, criteria: Sequence[Criterion], *, swapped: bool) -> str | None:
    """The field ``criteria`` of a person's vote, of the shape that a judge's has; ``said`` is that
    of their response. ``swapped``: what stood as A is the vote's b."""
    numbers = json.loads(said) if said else ()
    if not numbers or len(numbers) != len(criteria):  # nothing, or about others than these
        return None
    sides = {"a": "b", "b": "a"} if swapped else {"a": "a", "b": "b"}
    told = []
    for one, chosen in zip(criteria, numbers, strict=True):
        entry = one.model_dump(mode="json")
        for side in SIDES:
            entry[side] = _value(one, chosen[sides[side]])
            if one.veto:
                entry[f"{side}_fails"] = None if entry[side] is None else entry[side] == 0.0
        told.append(entry)
    return json.dumps({"from": "people", "criteria": told}, ensure_ascii=False)


def _value(criterion: Criterion, number: int | None) -> float | None:
    """How well an answer meets a criterion, from 0 to 1, by the number of a choice."""
    if number is None:
        return None
    value = (number - 1) / (len(criterion.choices) - 1)
    return 1 - value if criterion.weight < 0 else value


def _title(side: str, criterion: Criterion) -> str:
    text = one_line(criterion.text)
    name = f"{one_line(criterion.name)}: " if criterion.name and criterion.name != text else ""
    title = f"Answer {side.upper()} · {name}{text}"
    return title if len(title) <= _LONGEST_TITLE else f"{title[: _LONGEST_TITLE - 1]}…"
