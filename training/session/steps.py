"""The optimiser steps of a training, from its last checkpoint to its end."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any


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
    from prefloop.training.session.watch import resumable, step_record

    started = time.monotonic()
    tidy = trainer.is_world_process_zero()
    trainer.train(resume_from_checkpoint=resumable(checkpoints, fingerprint, tidy=tidy))
    state = trainer.state
    return Steps(
        number=state.global_step,
        seconds=time.monotonic() - started,
        history=[step_record(log, state.max_steps) for log in state.log_history if "loss" in log],
    )
