"""How many votes come of a labeler's requests."""

from __future__ import annotations

from prefloop.labelers.config import JudgeLabeler, LabelerConfig
from prefloop.labelers.judges.folder import load_judge
from prefloop.labelers.judges.settings import ListwiseSettings, RatingSettings, RubricSettings


def votes_of(labeler: LabelerConfig, requests: int, pairs: int) -> int:
    """Votes on ``pairs`` that take so many requests."""
    if not isinstance(labeler, JudgeLabeler):
        return pairs
    settings = load_judge(labeler.judge).settings
    if isinstance(settings, RatingSettings | RubricSettings):
        return pairs
    if isinstance(settings, ListwiseSettings):
        return pairs * labeler.votes * (2 if labeler.orders == "both" else 1)
    return requests
