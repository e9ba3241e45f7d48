"""From a labeler's config to the labeler."""

from __future__ import annotations

from data.protocol import Engine
from labelers.base import Labeler, LabelerError
from labelers.config import JudgeLabeler, LabelerConfig, VerifierLabeler
from labelers.judge import PairwiseJudge
from labelers.reference import ReferencePreferred
from labelers.verifier import Verifier


def build_labeler(config: LabelerConfig, *, engine: Engine | None, seed: int) -> Labeler:
    """The labeler that ``config`` describes; ``seed`` is the run's.

    ``engine`` serves the model of a judge; other labelers need none. Raises ``LabelerError``
    where the labeler cannot be built.
    """
    if isinstance(config, JudgeLabeler):
        if engine is None:
            raise LabelerError(f"labeler {config.name!r} is a judge and needs an engine")
        return PairwiseJudge(config, engine, seed=seed)
    if isinstance(config, VerifierLabeler):
        return Verifier(config)
    return ReferencePreferred(config)
