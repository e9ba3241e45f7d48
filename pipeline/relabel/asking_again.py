"""Asking labelers about the answers of a run that is sampled already."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from functools import partial

from prefloop.labelers.base import Labeler
from prefloop.labelers.config import JudgeLabeler, LabelerConfig
from prefloop.pipeline.config import POLICY, RunConfig, SampleConfig
from prefloop.pipeline.executors.local import Admission, LocalExecutor
from prefloop.pipeline.relabel.relabel_folder import LabelerRound
from prefloop.pipeline.run.context import RunContext
from prefloop.pipeline.run.models import Models
from prefloop.pipeline.run.promotion import lineage
from prefloop.pipeline.run.run_dir import RunDir
from prefloop.pipeline.stages.invalid_votes import asks_again
from prefloop.pipeline.stages.label import label_round


class LabelersOnCall:
    """Asks the labelers of ``config`` about the answers in ``directory``, with the response cache
    and the budgets of ``run``, whose config is ``before``. Models are loaded when one is asked."""

    def __init__(
        self, run: RunDir, directory: RunDir, before: RunConfig, config: RunConfig
    ) -> None:
        self.run, self.directory, self.config = run, directory, config
        self._before = before
        self._models: Models | None = None

    async def ask(self, folder: LabelerRound, labeler: LabelerConfig) -> None:
        """Have the votes of ``labeler`` on the blocks of a round that it has not voted on."""
        whole = RunContext.of(self.config, self.directory).round(folder.index)
        context = replace(whole, folder=folder, executor=LocalExecutor(self._admission))
        settings = self.config.label.model_copy(update={"labelers": (labeler,)})
        anew = asks_again(folder, settings)
        await label_round(context, settings, partial(self._open, labeler, folder.index, anew))

    async def close(self) -> None:
        """Give back what the models hold."""
        if self._models is not None:
            await self._models.release()

    def _admission(self) -> Admission | None:
        return None if self._models is None else self._models.admission

    async def _open(self, labeler: LabelerConfig, round_index: int, anew: bool) -> list[Labeler]:
        if self._models is None:
            labelers = self.config.label.labelers
            self._models = models_for(self.config, labelers, cache_of=self.run)
            self._models.take_probes(self.run.prompts, self.config.sample.system_prompt)
        if isinstance(labeler, JudgeLabeler) and POLICY in labeler.models:
            guards = self._before.train.guards if self._before.train else None
            start = self._models.start
            origin = lineage(self.run, round_index, start, self._before.evaluate, guards)
            self._models.use_policy(str(origin.previous))
        return await self._models.labelers([labeler], anew=anew)


def models_for(
    config: RunConfig, labelers: Iterable[LabelerConfig], *, cache_of: RunDir | None = None
) -> Models:
    """The models that ``labelers`` ask. What samples is not even looked for, unless it judges."""
    asked = config_for(config, labelers)
    if cache_of is None:
        return Models(asked)
    return Models(asked, cache=cache_of.cache, rubrics=cache_of.rubrics)


def config_for(config: RunConfig, labelers: Iterable[LabelerConfig]) -> RunConfig:
    """``config`` as that of somebody who asks ``labelers`` alone."""
    asked = tuple(labelers)
    judges = {model for one in asked if isinstance(one, JudgeLabeler) for model in one.models}
    return config.model_copy(
        update={
            "policy": config.policy if POLICY in judges else "embedded:policy",
            "sample": SampleConfig(engine=config.sample.engine),
            "label": config.label.model_copy(update={"labelers": asked}),
            "evaluate": config.evaluate.model_copy(update={"judges": (), "opponent": None}),
        }
    )
