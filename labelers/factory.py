"""From a labeler's config to the labeler."""

from __future__ import annotations

from prefloop.data.protocol import Engine, Likelihoods
from prefloop.labelers.base import Labeler, LabelerError
from prefloop.labelers.config import (
    GivenLabeler,
    ImplicitRewardLabeler,
    JudgeLabeler,
    LabelerConfig,
    OriginLabeler,
    ReferenceLabeler,
    RewardModelLabeler,
    VerifierLabeler,
)
from prefloop.labelers.judges.folder import load_judge
from prefloop.labelers.judges.listwise_judge import ListwiseJudge
from prefloop.labelers.judges.pairwise_judge import PairwiseJudge
from prefloop.labelers.judges.rating_judge import RatingJudge
from prefloop.labelers.judges.rubric.asked_criteria import require_criteria
from prefloop.labelers.judges.rubric.rubric_judge import RubricJudge
from prefloop.labelers.judges.rubric.writing import RubricWriter, WritingDesk
from prefloop.labelers.judges.settings import ListwiseSettings, RatingSettings, RubricSettings
from prefloop.labelers.scorers.given import GivenLabels
from prefloop.labelers.scorers.implicit_reward import ImplicitReward
from prefloop.labelers.scorers.origin import OriginPreferred
from prefloop.labelers.scorers.reference import ReferencePreferred
from prefloop.labelers.scorers.reward_model import RewardModel
from prefloop.labelers.scorers.verifier import Verifier


def build_labeler(
    config: LabelerConfig,
    *,
    engine: Engine | None,
    seed: int,
    checkpoint: str | None = None,
    likelihoods: Likelihoods | None = None,
    desk: WritingDesk | None = None,
) -> Labeler:
    """The labeler that ``config`` describes; ``seed`` is the run's.

    ``engine`` serves the model of a judge; other labelers need none. ``checkpoint`` is the folder
    of a reward model whose config has a hub name; null takes the config's own path.
    ``likelihoods`` are those of answers under the two models of an implicit reward. ``desk`` is for
    a judge whose criteria are written. Raises ``LabelerError`` where the labeler cannot be built.
    """
    if isinstance(config, JudgeLabeler):
        if engine is None:
            raise LabelerError(f"labeler {config.name!r} is a judge and needs an engine")
        judge = load_judge(config.judge)
        if (
            config.votes > 1
            and isinstance(judge.settings, RatingSettings | RubricSettings)
            and judge.settings.parser == "token"
        ):
            raise LabelerError(
                f"labeler {config.name!r}: {config.judge} reads the probabilities of all that it "
                "could say, and would say the same each time: leave out votes, or take a judge "
                "that answers in JSON"
            )
        require_criteria(config, judge)
        if isinstance(judge.settings, ListwiseSettings):
            return ListwiseJudge(config, judge, engine, seed=seed)
        if isinstance(judge.settings, RatingSettings):
            return RatingJudge(config, judge, engine, seed=seed)
        if isinstance(judge.settings, RubricSettings):
            writer = None
            if config.writer is not None:
                if desk is None:
                    raise LabelerError(f"labeler {config.name!r} needs who writes its criteria")
                writer = RubricWriter(config.name, config.writer, judge, desk, seed=seed)
            return RubricJudge(config, judge, engine, seed=seed, writer=writer)
        return PairwiseJudge(config, judge, engine, seed=seed)
    if isinstance(config, RewardModelLabeler):
        return RewardModel(config, checkpoint)
    if isinstance(config, ImplicitRewardLabeler):
        if likelihoods is None:
            raise LabelerError(f"labeler {config.name!r} needs the policy and the reference")
        return ImplicitReward(config, likelihoods)
    if isinstance(config, VerifierLabeler):
        return Verifier(config)
    if isinstance(config, OriginLabeler):
        return OriginPreferred(config)
    if isinstance(config, GivenLabeler):
        return GivenLabels(config)
    assert isinstance(config, ReferenceLabeler)
    return ReferencePreferred(config)
