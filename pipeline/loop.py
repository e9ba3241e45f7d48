"""The whole loop: sample, label, filter, write, train, evaluate, and again with the new policy.

Every stage looks at what exists and does the rest, so running a finished run again does nothing
and a killed run goes on where it stopped.
"""

from __future__ import annotations

import logging

from prefloop.data.conversation import with_system_prompt
from prefloop.labelers.base import Labeler
from prefloop.pipeline.config import RunConfig
from prefloop.pipeline.report.card import write_card
from prefloop.pipeline.report.run_page import write_report
from prefloop.pipeline.run.manifest import open_run
from prefloop.pipeline.run.models import PROBES, Models
from prefloop.pipeline.run.promotion import lineage, plateau
from prefloop.pipeline.run.round_guards import check_round
from prefloop.pipeline.run.run_dir import RoundDir, RunDir, RunError
from prefloop.pipeline.stages.evaluate import answer_heldout, answer_opponent, evaluate_round
from prefloop.pipeline.stages.filter import filter_round
from prefloop.pipeline.stages.label import label_round
from prefloop.pipeline.stages.on_policy import train_while_sampling
from prefloop.pipeline.stages.prompts import draw_prompts, read_prompts
from prefloop.pipeline.stages.sample import sample_round
from prefloop.pipeline.stages.train import reference_policy, train_round
from prefloop.pipeline.stages.write import rows_written, write_round

logger = logging.getLogger(__name__)


async def run_loop(config: RunConfig, run: RunDir) -> None:
    """Run (or resume) all rounds into ``run``. Raises subclasses of ``PrefloopError``."""
    with run.lock():
        models = Models(config, cache=run.cache)
        open_run(config, run, revisions=models.revisions())
        read_prompts(config, run)
        models.probes = [
            with_system_prompt(row["messages"], config.sample.system_prompt)
            for row in run.prompts.read(0).slice(0, PROBES).to_pylist()
        ]
        try:
            for index in range(config.rounds):
                await run_round(config, run, run.round(index), models)
                ended = plateau(config.evaluate.patience, run)
                if ended:
                    logger.warning("%s", ended)
                    break
        finally:
            await models.release()
        write_report(run)


async def run_round(config: RunConfig, run: RunDir, folder: RoundDir, models: Models) -> None:
    """One round, from the last policy that won to the dataset's next part and the next policy."""

    async def open_labelers() -> list[Labeler]:
        return [await models.labeler(labeler) for labeler in config.label.labelers]

    async def open_evaluators() -> list[Labeler]:
        return [await models.labeler(labeler) for labeler in config.evaluators]

    origin = lineage(config, run, folder.index, models.start)
    models.use_policy(str(origin.previous))
    blocks = draw_prompts(config, run, folder)
    if config.train:
        await answer_opponent(config, run, models)
        await answer_heldout(
            config, run, models, origin.previous_index, round_index=max(folder.index - 1, 0)
        )
    if config.train and config.train.on_policy:
        await train_while_sampling(config, run, folder, models, open_labelers, origin)
    else:
        await sample_round(config, run, folder, models, blocks)
        await label_round(config, run, folder, open_labelers)
        filter_round(config, run, folder)
    write_round(config, run, folder)
    write_card(config, run)
    if not config.train:
        return
    if not config.train.on_policy:
        if not rows_written(folder)["train"]:
            raise RunError(
                f"round {folder.index} kept no pair to train on: `prefloop status {run.root}` "
                "says why each was dropped; loosen those filters"
            )
        if not folder.policy.exists():
            await models.make_room()
        train_round(config, run, folder, origin)
    models.use_policy(str(folder.policy))
    if config.evaluate.enabled:
        await answer_heldout(config, run, models, folder.index + 1, round_index=folder.index)
        await evaluate_round(
            config, run, folder, open_evaluators, start=models.start,
            previous=origin.previous_index,
            reference=reference_policy(config, run, folder, origin),
        )  # fmt: skip
        check_round(config, folder)
