"""What a worker of a stage takes of a cluster."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from prefloop.labelers.config import JudgeLabeler, LabelConfig, LabelerConfig, OwnModelLabeler
from prefloop.pipeline.config import PoolMember, RunConfig, SampleConfig
from prefloop.pipeline.engines.settings import (
    EngineConfig,
    LocalEngine,
    OpenAIEngine,
    TransformersEngine,
    VllmEngine,
)
from prefloop.pipeline.executors.block_task import BlockTask, ExecutorFailed

_MOST_AT_HAND = 64
_PARTS = 16


@dataclass(frozen=True)
class WorkerNeeds:
    """What one worker takes, and how many there may be."""

    cpus: float
    gpus: float
    accelerator: str | None
    least: int
    most: int | None
    """Null: as many as there is room for."""
    computes: bool
    """Whether models are computed in it."""


def worker_needs(config: RunConfig, task: BlockTask, *, has_gpus: bool) -> WorkerNeeds:
    """What a worker of ``task`` takes. Its engines share its GPUs, as they share those of one
    machine. ``has_gpus``: of the cluster.

    Raises ``ExecutorFailed`` where two engines cannot be in one worker.
    """
    if "readings" in task.details:
        return _of_scoring(config, has_gpus=has_gpus)
    if "units" in task.details:  # tables, and no model
        least, most = _workers(config, ())
        return WorkerNeeds(config.executor.cpus, 0.0, None, least, most, computes=False)
    names, own = _opened(task)
    engines = {name: config.engines[name] for name in names}
    gpus = [_gpus(engine, has_gpus=has_gpus) for engine in engines.values()]
    gpus += [float(_on_gpu(labeler.device, has_gpus=has_gpus)) for labeler in own]
    local = {
        name: one for name, one in engines.items() if not isinstance(one, OpenAIEngine)
    }  # fmt: skip
    kinds = {one.accelerator_type for one in local.values()} - {None}
    if len(kinds) > 1:
        raise ExecutorFailed(
            f"engines.{' and engines.'.join(local)} differ in accelerator_type "
            f"({', '.join(sorted(filter(None, kinds)))}), and one worker has them all: name one"
        )
    least, most = _workers(config, local.values())
    return WorkerNeeds(
        cpus=config.executor.cpus + sum(one.cpus or 0 for one in local.values()),
        gpus=max(gpus, default=0.0),
        accelerator=next(iter(kinds), None),
        least=least,
        most=most,
        computes=bool(own or local),
    )


def _of_scoring(config: RunConfig, *, has_gpus: bool) -> WorkerNeeds:
    """Of a worker that reads texts by the policy, with the settings of the engine that it is
    sampled with, one model on one device at a time."""
    engine = config.engines[config.sample.engine]
    local = [] if isinstance(engine, OpenAIEngine) else [engine]
    device = engine.device if isinstance(engine, TransformersEngine) else "auto"
    least, most = _workers(config, local)
    return WorkerNeeds(
        cpus=config.executor.cpus + sum(one.cpus or 0 for one in local),
        gpus=float(_on_gpu(device, has_gpus=has_gpus)),
        accelerator=next((one.accelerator_type for one in local), None),
        least=least,
        most=most,
        computes=True,
    )


def _workers(config: RunConfig, engines: Iterable[LocalEngine]) -> tuple[int, int | None]:
    """The least and the most of them; null: as many as there is room for."""
    several = [one.replica_range for one in engines if one.replica_range != (1, 1)]
    least = max((low for low, _ in several), default=1)
    most = [high for _, high in several]
    if config.executor.workers is not None:
        most.append(config.executor.workers)
        least = min(least, config.executor.workers)
    return least, max(min(most), least) if most else None


def of_one_worker(config: RunConfig) -> RunConfig:
    """``config`` as it is for a worker, which is itself one of several."""
    engines = {
        name: engine
        if isinstance(engine, OpenAIEngine)
        else engine.model_copy(update={"replicas": 1})
        for name, engine in config.engines.items()
    }
    return config.model_copy(update={"engines": engines})


def blocks_at_hand(blocks: int, workers: int) -> int:
    """How many of a stage's ``blocks`` each of ``workers`` may be given at once, to begin them as
    its engines have room. Nobody else does what one was given, so that it is a small part of a
    worker's share: the last blocks are for whoever is idle."""
    return min(blocks // (_PARTS * workers), _MOST_AT_HAND)


def share_rates(engine: dict[str, Any], workers: int) -> None:
    """Let each of ``workers`` ask an engine (its settings as JSON has them) its share of what all
    of them may ask in a minute."""
    for place in (engine, *(engine.get("endpoints") or ())):
        for rate in ("requests_per_minute", "tokens_per_minute"):
            if place.get(rate):
                place[rate] = max(place[rate] // workers, 1)


def _opened(task: BlockTask) -> tuple[list[str], list[OwnModelLabeler]]:
    """The engines that a worker opens, by name, and the labelers with models of their own."""
    details: Mapping[str, Any] = task.details
    if "label" in details:
        labelers: tuple[LabelerConfig, ...] = LabelConfig.model_validate(details["label"]).labelers
        judges = [one.engine for one in labelers if isinstance(one, JudgeLabeler)]
        return list(dict.fromkeys(judges)), [
            one for one in labelers if isinstance(one, OwnModelLabeler)
        ]
    if "member" in details:
        return [PoolMember.model_validate(details["member"]).engine], []
    sample = SampleConfig.model_validate(details["sample"])
    members = sample.members() if sample.total else ()
    return list(dict.fromkeys(member.engine for member in members)), []


def _gpus(engine: EngineConfig, *, has_gpus: bool) -> float:
    if isinstance(engine, OpenAIEngine):
        return 0.0
    if isinstance(engine, VllmEngine):
        return float(engine.gpus_of_replica) if has_gpus or engine.gpus else 0.0
    return float(_on_gpu(engine.device, has_gpus=has_gpus))


def _on_gpu(device: str, *, has_gpus: bool) -> bool:
    return device.startswith("cuda") or (device == "auto" and has_gpus)
