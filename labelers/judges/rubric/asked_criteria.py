"""Which criteria a judge with a rubric asks about: those of its folder, those of the prompt, or
those that a model writes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from prefloop.data.prompts.criteria import RUBRIC, Criterion, rubric_of
from prefloop.labelers.base import LabelerError
from prefloop.labelers.config import JudgeLabeler
from prefloop.labelers.judges.folder import Judge
from prefloop.labelers.judges.settings import RubricSettings

BAD_RUBRIC = "bad_rubric"
"""Why there is no answer where a prompt's criteria cannot be read."""


def require_criteria(config: JudgeLabeler, judge: Judge) -> None:
    """Raise ``LabelerError`` where the labeler has no criteria, or has some and no use for them."""
    if not isinstance(judge.settings, RubricSettings):
        if config.criteria != "judge":
            raise LabelerError(
                f"labeler {config.name!r}: criteria is for judges of kind rubric, and "
                f"{config.judge} is none: leave it out"
            )
        return
    if config.criteria == "judge" and not judge.settings.criteria:
        raise LabelerError(
            f"labeler {config.name!r}: {config.judge} has no criteria of its own: write them into "
            "its judge.yaml, or set `criteria: prompt`"
        )
    if config.writer is not None and judge.writing is None:
        raise LabelerError(
            f"labeler {config.name!r}: {config.judge} does not say how criteria are asked for: "
            "put a criteria.jinja into its folder, such as the one of the shipped rubric"
        )


def criteria_for(
    config: JudgeLabeler, judge: Judge, metadata: Mapping[str, Any]
) -> tuple[Criterion, ...] | None:
    """The criteria of a prompt with this metadata; null where it has none, or none yet.

    Raises ``ValueError`` where they cannot be read.
    """
    assert isinstance(judge.settings, RubricSettings)
    if config.criteria == "judge":
        return judge.settings.criteria
    return rubric_of(metadata.get(RUBRIC)) if config.criteria == "prompt" else None
