"""From an order to a job: what a worker of a cluster does for each stage, by the functions that the
stages have for this process."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Mapping
from contextlib import AsyncExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from prefloop.labelers.config import JudgeLabeler, LabelConfig
from prefloop.pipeline.config import PoolMember, RunConfig, SampleConfig, validate_config
from prefloop.pipeline.executors.attempts import Attempts
from prefloop.pipeline.executors.block_task import BlockJob, BlockTask, Executor, ExecutorFailed
from prefloop.pipeline.executors.block_worker import StoredRun, WorkOrder
from prefloop.pipeline.executors.local import LocalExecutor, LocalJob
from prefloop.pipeline.remote.working_copy import WorkingCopy, copy_of
from prefloop.pipeline.run.context import RoundContext, RunContext
from prefloop.pipeline.run.final_split import ids_of_rounds
from prefloop.pipeline.run.models import Models
from prefloop.pipeline.run.run_dir import RunDir
from prefloop.pipeline.stages.dataset.volumes import WRITE, write_job
from prefloop.pipeline.stages.deciding.deciding_jobs import FILTER, filter_job
from prefloop.pipeline.stages.evaluate import ANSWERS, HeldOutAnswers, answer_job
from prefloop.pipeline.stages.label import LABEL, label_job
from prefloop.pipeline.stages.likelihood.reading import LOGPS, ReadingOrder, reading_job
from prefloop.pipeline.stages.matches import MATCH, Voting, match_job
from prefloop.pipeline.stages.sample import SAMPLE, sample_job
from prefloop.training.config import EvaluateConfig

_OF_TABLES = (FILTER, WRITE)
"""Stages that need no model."""


def executor_of(config: RunConfig, run: RunDir, models: Models) -> Executor:
    """Who works on the blocks of ``run``, whose policies ``models`` know.

    Raises ``ExecutorFailed``.
    """
    if config.train and config.train.cluster and (copy := copy_of(run.root)):
        raise ExecutorFailed(
            f"train.cluster: the run directory {copy.address} is worked on in a copy of this "
            "machine, which the processes of a cluster do not see: let run_dir be a folder that "
            "all nodes share, or leave out train.cluster"
        )
    if config.executor.type == "local":
        return LocalExecutor(lambda: models.admission)
    copy = copy_of(run.root)
    if copy and (shared := _in_shared_files(config)):
        raise ExecutorFailed(
            f"executor.type ray: {shared}, and nodes share no files of the run directory "
            f"{copy.address}: let run_dir be a folder that all nodes share, or leave that out, or "
            "set executor.type: local"
        )
    from prefloop.pipeline.executors.ray import RayExecutor

    def policy_now() -> str | None:
        return None if models.policy == models.start else models.policy

    store = StoredRun(copy.address, copy.root) if copy else None
    return RayExecutor(config, run.root, policy_now, job_of, store)


def _in_shared_files(config: RunConfig) -> str | None:
    """What of ``config`` all workers keep in files together; null where there is nothing."""
    for name, engine in config.engines.items():
        for key in ("max_cost", "max_total_tokens"):
            if getattr(engine, key, None) is not None:
                return f"engines.{name}.{key} is counted in a file of all workers"
    for labeler in config.all_labelers:
        if isinstance(labeler, JudgeLabeler) and labeler.writer is not None:
            return f"the criteria that labeler {labeler.name} has written are files of all workers"
    return None


async def job_of(order: WorkOrder) -> LocalJob:
    """The job that ``order`` asks for, with its models open."""
    config = validate_config(dict(order.config), str(order.root))
    if order.store is not None:
        order = await asyncio.to_thread(_on_this_machine, order, order.store)
    task = order.task
    context = RunContext.of(config, RunDir(task.root)).round(task.round)
    if task.stage in _OF_TABLES:
        return await LocalExecutor().open(_job_of_tables(order, context))
    run = RunDir(order.root)
    models = Models(config, **_files_of_engines(order, run))
    models.take_probes(run.prompts, config.sample.system_prompt)
    if order.policy is not None:
        models.use_policy(order.policy)
    return await LocalExecutor(lambda: models.admission).open(_job_of(task, models, context))


def _files_of_engines(order: WorkOrder, run: RunDir) -> dict[str, Any]:
    """Where engines and judges keep what they were answered, and what that cost."""
    if order.store is not None:  # beside the copy, in which nothing is written but by the driver
        beside = WorkingCopy(order.store.address).root.parent / "workers"
        return {"cache": beside, "ledgers": beside}
    # SQLite, which keeps the responses, cannot be shared between machines; what was spent can be.
    here = socket.gethostname()
    cache = run.cache if here == order.host else run.cache / "hosts" / here
    return {"cache": cache, "ledgers": run.cache, "rubrics": run.rubrics}


def _on_this_machine(order: WorkOrder, store: StoredRun) -> WorkOrder:
    """``order`` with the paths of this machine's copy of what is on the store, which has all that
    the stage reads: it was committed before the stage began."""
    of_driver = str(store.copy)
    stage = order.task.stage
    reads_weights = stage == LOGPS or (order.policy is not None and stage not in _OF_TABLES)
    here = WorkingCopy(store.address).look(weights=reads_weights)

    def moved(value: Any) -> Any:
        match value:
            case str() if value == of_driver or value.startswith(of_driver + os.sep):
                return str(here) + value[len(of_driver) :]
            case dict():
                return {key: moved(one) for key, one in value.items()}
            case list():
                return [moved(one) for one in value]
            case _:
                return value

    task = order.task
    task = replace(task, root=Path(moved(str(task.root))), details=moved(dict(task.details)))
    return replace(order, task=task, root=Path(moved(str(order.root))), policy=moved(order.policy))


def _job_of_tables(order: WorkOrder, context: RoundContext) -> BlockJob:
    if order.task.stage == FILTER:
        return filter_job(context, order.task.details)
    return write_job(context, order.task.details, Attempts(order.generation).is_over)


def _job_of(task: BlockTask, models: Models, context: RoundContext) -> BlockJob:
    details = task.details
    if task.stage == SAMPLE:
        sample = SampleConfig.model_validate(details["sample"])
        return sample_job(context, sample, models, with_references=details["with_references"])
    if task.stage == LABEL:
        label = LabelConfig.model_validate(details["label"])
        labelers = partial(models.labelers, label.labelers, anew=details["anew"])
        return label_job(context, label, labelers)
    if task.stage == MATCH:
        label = LabelConfig.model_validate(details["label"])
        by = Voting(partial(models.labelers, label.labelers), label, details["section"])
        return match_job(context, details["policy"], details["opponent"], by)
    if task.stage == LOGPS:
        order = ReadingOrder.read(details, Path(models.start))
        return reading_job(context, order, models.scoring, AsyncExitStack())
    assert task.stage == ANSWERS
    return _answer_job(context, models, details)


def _answer_job(context: RoundContext, models: Models, details: Mapping[str, Any]) -> BlockJob:
    settings = EvaluateConfig.model_validate(details["evaluate"])
    policy = details["policy"]
    assert isinstance(policy, int | str)
    answers = HeldOutAnswers(
        context.run,
        settings,
        policy,
        ids_of_rounds(context.run.heldout, settings, context.seed),
        untempered=bool(details["untempered"]),
    )
    sample = SampleConfig.model_validate(details["sample"])
    member = PoolMember.model_validate(details["member"])
    return answer_job(context, sample, models, member, answers)
