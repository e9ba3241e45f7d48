"""The whole loop: sample, label, filter, write, train, evaluate, and again with the new policy.

Every stage looks at what exists and does the rest, so running a finished run again does nothing
and a killed run goes on where it stopped. The config is taken apart here: a stage is handed its own
section and a small context.
"""

from __future__ import annotations

import logging
from dataclasses import replace
from functools import partial

from prefloop.data.errors import PrefloopError
from prefloop.pipeline.adoption import finish_adoption
from prefloop.pipeline.checking.run_check import check_before
from prefloop.pipeline.config import RunConfig
from prefloop.pipeline.executors.resources import of_one_worker
from prefloop.pipeline.final_evaluation import evaluate_final
from prefloop.pipeline.redecide import finish_deciding
from prefloop.pipeline.report.card import write_card
from prefloop.pipeline.report.run_page import write_report
from prefloop.pipeline.run.context import RoundContext, RunContext
from prefloop.pipeline.run.fresh import report_is_fresh
from prefloop.pipeline.run.manifest import as_begun, open_run
from prefloop.pipeline.run.models import Models
from prefloop.pipeline.run.promotion import Lineage, begin_round, plateau, promotion_confidence
from prefloop.pipeline.run.round_guards import GuardStopped, check_round
from prefloop.pipeline.run.round_jury import load_round_jury, with_labels_of
from prefloop.pipeline.run.run_dir import RunDir
from prefloop.pipeline.stages.evaluate import (
    Measuring,
    answer_heldout,
    answer_opponent,
    evaluate_round,
    heldout_sampling,
    is_untempered,
)
from prefloop.pipeline.stages.filter import filter_round, require_kept
from prefloop.pipeline.stages.invalid_votes import asks_again
from prefloop.pipeline.stages.label import label_round
from prefloop.pipeline.stages.matches import MatchJury, match_jury, voting
from prefloop.pipeline.stages.on_policy import LegSettings, train_while_sampling
from prefloop.pipeline.stages.prompts import draw_prompts, read_prompts
from prefloop.pipeline.stages.sample import sample_round
from prefloop.pipeline.stages.train import train_round
from prefloop.pipeline.stages.write import require_train_rows, write_round
from prefloop.pipeline.tracking.trackers import Trackers, require_trackers, trackers_of
from prefloop.pipeline.work import executor_of
from prefloop.training.config import TrainConfig

logger = logging.getLogger(__name__)


def take_up(config: RunConfig, run: RunDir) -> tuple[RunConfig, Models, RunContext]:
    """What stands before the first stage, also of a run that goes on: the config with the values
    that the run was begun with, its models, which the caller releases, and its context, whose
    executor the caller closes. Prompts are read, and what was begun of deciding again is finished.
    The caller holds the run's lock."""
    finish_adoption(run)
    config = as_begun(config, run)
    on_cluster = config.executor.type == "ray"
    models = Models(
        of_one_worker(config) if on_cluster else config, cache=run.cache, rubrics=run.rubrics
    )
    context = replace(
        RunContext.of(config, run),
        blocks_in_flight=models.blocks_in_flight,
        executor=executor_of(config, run, models),
    )
    open_run(config, run, revisions=models.revisions())
    read_prompts(context, config.prompts, block_size=config.block_size, given=config.sample.given)
    run.index_shards()
    models.take_probes(run.prompts, config.sample.system_prompt)
    finish_deciding(config, run)
    return config, models, context


async def run_loop(config: RunConfig, run: RunDir, *, check: bool = False) -> None:
    """Run (or resume) all rounds into ``run``. ``check``: first ask everybody once who is going to
    be asked for the first time. Raises subclasses of ``PrefloopError``."""
    require_trackers(config.tracking)
    with run.lock():
        config, models, context = take_up(config, run)
        try:
            if check:
                await check_before(config, run, models)
            with trackers_of(config, run) as trackers:
                told = replace(context, on_step=trackers.step)
                await _run_to_the_end(config, told, models, trackers)
                if not report_is_fresh(run):
                    write_report(run)
                trackers.report()
        finally:
            await context.executor.aclose()
            await models.release()


async def _run_to_the_end(
    config: RunConfig, context: RunContext, models: Models, trackers: Trackers
) -> None:
    """All rounds that are worth it, and the look at the policy to keep."""
    try:
        await _run_rounds(config, context, models, trackers)
    except GuardStopped:
        # The run may be over, so what it kept is looked at; why it ended is what is said.
        try:
            await _look_at_kept(config, context, models)
            write_report(context.run)
        except PrefloopError as error:
            logger.warning("the final prompts are not judged: %s", error)
        raise
    await _look_at_kept(config, context, models)


async def _look_at_kept(config: RunConfig, context: RunContext, models: Models) -> None:
    if config.evaluate.final is None:
        return
    await evaluate_final(config, context, models)
    write_card(config, context.run)


async def _run_rounds(
    config: RunConfig, context: RunContext, models: Models, trackers: Trackers
) -> None:
    """All rounds, or as many as are worth it."""
    for index in range(config.rounds):
        await run_round(config, context.round(index), models)
        trackers.round(context.run.round(index))
        ended = plateau(config.evaluate.patience, context.run)
        # A round that was begun is finished, whatever is thought of those before it now.
        if ended and context.run.rounds()[-1].index <= index:
            logger.warning("%s", ended)
            break


async def run_round(config: RunConfig, context: RoundContext, models: Models) -> None:
    """One round, from the policy that it begins with to the dataset's next part and the next
    policy."""
    config = with_labels_of(config, context.folder)
    guards = config.train.guards if config.train else None
    origin = begin_round(context.run, context.index, models.start, config.evaluate, guards)
    models.use_policy(str(origin.previous))
    blocks = draw_prompts(
        context,
        per_round=config.sample.prompts_per_round,
        per_leg=config.prompts_per_leg,
        block_size=config.block_size,
    )
    if config.train:
        await answer_opponent(context, config.sample, config.evaluate, models)
        made_in = context.round(max(context.index - 1, 0))
        policy = origin.previous_index
        await answer_heldout(made_in, config.sample, config.evaluate, models, policy)
    if config.train and config.train.on_policy:
        await _train_while_sampling(config, config.train, context, models, origin)
        await filter_round(context, config.label, config.filter)  # decisions lost since
    else:
        await sample_round(
            context, config.sample, models, blocks, with_references=config.uses_references
        )
        anew = asks_again(context.folder, config.label)
        open_labelers = partial(models.labelers, config.label.labelers, anew=anew)
        await label_round(context, config.label, open_labelers)
        await filter_round(context, config.label, config.filter)
        require_kept(context)
    share = config.write.test_share
    await write_round(
        context, test_share=share, unpaired=config.writes_unpaired,
        every_answer=config.write.every_answer,
    )  # fmt: skip
    try:
        if _needs_pairs(config, context):
            require_train_rows(context, share)
    finally:  # a round that is taken back leaves a dataset of those before it
        write_card(config, context.run)
    if not config.train:
        return
    if not config.train.on_policy:
        await _train(config.train, context, models, origin)
    models.use_policy(str(context.folder.policy))
    if config.evaluate.enabled:
        policy = context.index + 1
        await answer_heldout(context, config.sample, config.evaluate, models, policy)
        await _evaluate(config, config.train, context, models, origin)
        check_round(context.folder, config.train.guards, promote=config.evaluate.promote)


def _needs_pairs(config: RunConfig, context: RoundContext) -> bool:
    """Whether the round's training is to come, and learns from the triples on disk."""
    train = config.train
    return bool(train and not train.on_policy and not context.folder.policy.exists())


async def _train_while_sampling(
    config: RunConfig, train: TrainConfig, context: RoundContext, models: Models, origin: Lineage
) -> None:
    assert config.prompts_per_leg is not None
    legs = LegSettings(
        prompts=config.prompts_per_leg,
        sample=config.sample,
        with_references=config.uses_references,
        label=config.label,
        filters=config.filter,
        test_share=config.write.test_share,
    )
    open_labelers = partial(models.labelers, config.label.labelers)
    await train_while_sampling(context, train, legs, models, open_labelers, origin)


async def _train(
    train: TrainConfig, context: RoundContext, models: Models, origin: Lineage
) -> None:
    if not context.folder.policy.exists():
        await models.make_room()
    train_round(context, train, origin)


async def _evaluate(
    config: RunConfig, train: TrainConfig, context: RoundContext, models: Models, origin: Lineage
) -> None:
    def jury() -> MatchJury:
        fitted = load_round_jury(config.label, context.folder)
        return match_jury(config.label.jury, config.evaluate, config.evaluators, fitted)

    sure = promotion_confidence(config.evaluate, config.rounds)
    own = is_untempered(heldout_sampling(config.sample, config.evaluate))
    votes = voting(config, config.evaluators, models.labelers)
    by = Measuring(votes, jury, models.scoring, sure, untempered=own)
    await evaluate_round(context, config.evaluate, train, origin, by)
