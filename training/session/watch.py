"""What looks after a training while it runs: guards, checkpoints, weights put aside, silence.

Imports torch and TRL: import this module inside functions only.
"""

from __future__ import annotations

import logging
import math
import shutil
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import transformers
from transformers import TrainerCallback

from prefloop.training.errors import TrainingError
from prefloop.training.session.checkpoint_folder import mark
from prefloop.training.session.guards import GuardWatch
from prefloop.training.session.snapshots import snapshots_within

logger = logging.getLogger(__name__)
_TRAINING = threading.RLock()


class Watch(TrainerCallback):  # type: ignore[misc]  # transformers' types are not followed
    """Reports each optimiser step, stops on NaN, and marks checkpoints that are complete."""

    def __init__(
        self,
        fingerprint: str,
        on_step: Callable[[dict[str, float]], None] | None,
        *,
        model: str = "policy",
        guards: GuardWatch | None = None,
        snapshots: Path | None = None,
    ) -> None:
        """``model`` is the word for what is trained, for messages. ``guards`` may stop the
        training; while they are content, weights are put into ``snapshots`` now and then."""
        self.fingerprint = fingerprint
        self.on_step = on_step
        self.model = model
        self.guards = guards
        self.snapshots = snapshots
        self.trainer: Any = None
        """Set by the caller where there are ``snapshots`` or several processes."""

    def on_train_begin(self, _args: Any, state: Any, _control: Any, **_: Any) -> None:
        if self.guards:  # what a resumed training went through before
            for log in state.log_history:
                if "loss" in log:
                    self.guards.see(log)

    def on_epoch_begin(
        self, _args: Any, state: Any, _control: Any, *, train_dataloader: Any = None, **_: Any
    ) -> None:
        # A training of several processes that is resumed within an epoch tells its number to the
        # outer samplers only, and the innermost would draw the order of the first epoch.
        sampler = getattr(train_dataloader, "batch_sampler", None)
        while sampler is not None:
            if hasattr(sampler, "set_epoch"):
                sampler.set_epoch(int(state.epoch or 0))
            sampler = getattr(sampler, "batch_sampler", None) or getattr(sampler, "sampler", None)

    def on_log(
        self,
        args: Any,
        state: Any,
        control: Any,
        logs: dict[str, float],
        **_: Any,
    ) -> None:
        if "loss" not in logs:  # the summary at the end
            return
        for name in ("loss", "grad_norm"):
            if not math.isfinite(logs.get(name, 0.0)):
                raise TrainingError(
                    f"{name} became {logs[name]} at step {state.global_step}; no {self.model} was "
                    f"saved: lower learning_rate (now {args.learning_rate:g}), or check that the "
                    "model it starts from has finite weights"
                )
        record = {**logs, "step": state.global_step}
        if self.guards:
            self._guard(record, state, control)
        if self.on_step and state.is_world_process_zero:
            self.on_step(step_record(record, state.max_steps))

    def _guard(self, record: dict[str, float], state: Any, control: Any) -> None:
        assert self.guards is not None
        for trip in self.guards.see(record):
            logger.warning("%s", trip)
        if self.guards.stopped:
            control.should_training_stop = True
        if not self.guards.healthy:
            control.should_save = False  # what is resumed from has to be worth it
            return
        if self.snapshots and state.global_step % self._every(state.max_steps) == 0:
            save_snapshot(self.trainer, self.snapshots, state.global_step)

    def _every(self, steps: int) -> int:
        """Steps from one snapshot to the next."""
        assert self.guards is not None
        wanted = self.guards.config.snapshots
        return max(1, steps // snapshots_within(wanted, saved_bytes(self.trainer)))

    def on_save(self, args: Any, state: Any, _control: Any, **_: Any) -> None:
        if self.trainer:  # every process has its part of a checkpoint
            self.trainer.accelerator.wait_for_everyone()
        if not state.is_world_process_zero:
            return
        folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        mark(folder, self.fingerprint)


def save_snapshot(trainer: Any, folder: Path, step: int) -> None:
    """Keep the weights of ``trainer`` as ``folder``/``step``, and none of earlier steps."""
    partial, done = folder / f".{step}.partial", folder / str(step)
    main = trainer.is_world_process_zero()
    if main:
        shutil.rmtree(partial, ignore_errors=True)
    save_weights(trainer, partial)
    if not main:
        return
    shutil.rmtree(done, ignore_errors=True)
    partial.rename(done)
    for other in folder.iterdir():
        if other != done:
            shutil.rmtree(other, ignore_errors=True)


def saved_bytes(trainer: Any) -> int:
    """Bytes of what :func:`save_weights` writes, on whatever number of processes."""
    parameters = list(trainer.model.parameters())
    if hasattr(trainer.model, "peft_config"):
        parameters = [one for one in parameters if one.requires_grad]
    parts = trainer.accelerator.num_processes if trainer.is_fsdp_enabled else 1
    # DeepSpeed leaves an empty tensor here, and says how large it is.
    numbers = (getattr(one, "ds_numel", one.numel()) * one.element_size() for one in parameters)
    return int(parts * sum(numbers))


def save_weights(trainer: Any, folder: Path) -> None:
    """Write the model (or adapter) as it is now; all processes of a training call it together."""
    if not (trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled):
        if trainer.is_world_process_zero():
            trainer.accelerator.unwrap_model(trainer.model).save_pretrained(folder)
        return
    trainer.save_model(str(folder))  # gathers what lies on several devices
    if trainer.is_world_process_zero():
        (folder / "training_args.bin").unlink(missing_ok=True)  # a pickle


def last_snapshot(folder: Path) -> Path | None:
    """The weights that were put aside last, in a folder named by their step."""
    found = [path for path in folder.glob("*") if path.name.isdigit()]
    return max(found, key=lambda path: int(path.name)) if found else None


def step_record(log: dict[str, float], total_steps: int) -> dict[str, float]:
    """One step of the history: TRL's names, without its token count (wrong after a resume)."""
    kept = {name: value for name, value in log.items() if name != "num_tokens"}
    return kept | {"total_steps": total_steps}


@contextmanager
def training_alone(*, verbose: bool) -> Iterator[None]:
    """Nothing else is trained in this process until the block ends: dropout and adapters are drawn
    from torch's one generator. The libraries' progress lines and warnings are off the terminal
    unless ``verbose``."""
    with _TRAINING, _quiet(verbose):
        yield


@contextmanager
def _quiet(verbose: bool) -> Iterator[None]:
    """Keep the libraries' progress lines and warnings off the terminal unless ``verbose``."""
    if verbose:
        yield
        return
    level = transformers.logging.get_verbosity()
    bars = transformers.logging.is_progress_bar_enabled()
    loggers = [logging.getLogger(name) for name in ("trl", "accelerate", "peft", "bitsandbytes")]
    levels = [logger.level for logger in loggers]
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    # It calls a kernel an error that nobody asked for; one that is needed and missing raises.
    logging.getLogger("bitsandbytes").setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        transformers.logging.set_verbosity(level)
        if bars:
            transformers.logging.enable_progress_bar()
        for logger, before in zip(loggers, levels, strict=True):
            logger.setLevel(before)
