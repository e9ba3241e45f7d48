"""The optimiser steps of a training, from its last checkpoint to its end."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

from prefloop.training.errors import TrainingError
from prefloop.training.session.checkpoint_folder import SUMS, resumable

SHUFFLED = "shuffled"
"""The order of batches of like length (``train.order: length``): by a draw of their own."""
GROUPED = "grouped"
"""The same of earlier versions: from long to short, stretch by stretch."""


def order_begun(checkpoints: Path, fingerprint: str) -> str:
    """In which order a training draws its batches of like length: ``GROUPED`` where it goes on from
    a checkpoint of an earlier version, since it has seen its rows in that order."""
    return GROUPED if resumable(checkpoints, fingerprint, tidy=False) else SHUFFLED


def checkpoint_mark(fingerprint: str, order: str) -> str:
    """What the checkpoints of a training are known by: what is trained on what, in which order."""
    return fingerprint if order == GROUPED else f"{fingerprint} {order}"


@dataclass(frozen=True)
class Steps:
    """The steps that a training has taken."""

    number: int
    seconds: float
    history: list[dict[str, float]]
    """One record per step, those before a resume among them."""


def take_steps(trainer: Any, checkpoints: Path, fingerprint: str) -> Steps:
    """Train until the end, from the last complete checkpoint of this very training if there is
    one."""
    from safetensors import SafetensorError

    from prefloop.training.session.watch import step_record

    started = time.monotonic()
    tidy = trainer.is_world_process_zero()
    last = resumable(checkpoints, fingerprint, tidy=tidy)
    try:
        trainer.train(resume_from_checkpoint=last)
    except (
        EOFError,
        ValueError,
        KeyError,
        RuntimeError,
        UnpicklingError,
        SafetensorError,
    ) as error:
        # One with checksums was whole when the trainer was given it.
        begun = last is not None and trainer.state.global_step > int(last.rpartition("-")[2])
        if last is None or begun or (Path(last) / SUMS).is_file():
            raise
        raise TrainingError(
            f"the checkpoint {last} cannot be read ({type(error).__name__}): delete that folder; "
            "the same command then goes on from an earlier one, or begins anew"
        ) from error
    state = trainer.state
    return Steps(
        number=state.global_step,
        seconds=time.monotonic() - started,
        history=[step_record(log, state.max_steps) for log in state.log_history if "loss" in log],
    )
