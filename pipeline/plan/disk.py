"""What training puts on the disk: the policies, and what it needs to be stopped and resumed."""

from __future__ import annotations

from dataclasses import dataclass

from prefloop.pipeline.config import RunConfig
from prefloop.pipeline.machine.footprint import lora_parameters
from prefloop.pipeline.machine.model_shape import model_shape
from prefloop.pipeline.plan.steps import Training
from prefloop.training.session.snapshots import snapshots_within

_EACH = 4
"""Bytes of a parameter: policies are trained in float32, and kept as they were trained."""


@dataclass(frozen=True)
class DiskSpace:
    """Bytes on the disk."""

    kept: int
    """Of the policies of all rounds, and of the one after a warm-up."""
    meanwhile: int
    """More of them while a round trains: snapshots and checkpoints, one and the next of each."""
    written: int
    """In a round, for its snapshots."""


def disk_space(config: RunConfig, training: tuple[Training, ...]) -> DiskSpace | None:
    """What the rounds of ``training`` take; null where nothing is trained."""
    train = config.train
    if train is None or not training:
        return None
    shape = model_shape(config.policy)
    saved = shape.parameters if not train.lora else lora_parameters(shape, train.lora.r)
    weights = _EACH * saved
    steps = max(each.steps for each in training)
    snapshots = 0
    if train.guards.enabled:
        snapshots = min(snapshots_within(train.guards.snapshots, weights), steps)
    # Of a checkpoint: the weights and the optimiser's two states.
    checkpoints = 2 * 3 * weights if steps > train.save_steps else 0
    return DiskSpace(
        kept=(len(training) + (train.sft_warmup is not None)) * weights,
        meanwhile=min(snapshots, 2) * weights + checkpoints,
        written=snapshots * weights,
    )
