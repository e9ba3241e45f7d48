"""A reference policy that follows the policy at every step (``train.reference: ema``).

Imports torch and TRL: import this module inside functions only.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers import TrainerCallback
from trl.trainer.callbacks import SyncRefModelCallback

_FILE = "ema_reference.safetensors"
"""In each checkpoint: the reference as it was at that step."""


class EmaReference(TrainerCallback):  # type: ignore[misc]  # transformers' types are not followed
    """Moves the reference of a trainer by a share of its distance to the policy at each step, and
    has checkpoints hold it, so that a resumed training has the one that it had."""

    def __init__(self, trainer: Any, decay: float) -> None:
        self.trainer, self.decay = trainer, decay

    @property
    def reference(self) -> Any:
        """The model that the loss compares with."""
        return self.trainer.accelerator.unwrap_model(self.trainer.ref_model)

    def on_train_begin(self, args: Any, state: Any, _control: Any, **_: Any) -> None:
        if state.global_step == 0:
            return
        file = Path(args.output_dir) / f"checkpoint-{state.global_step}" / _FILE
        kept = load_file(file)
        with torch.no_grad():
            for name, weights in self.reference.named_parameters():
                weights.copy_(kept[name])

    def on_step_end(self, _args: Any, _state: Any, _control: Any, **_: Any) -> None:
        policy = self.trainer.accelerator.unwrap_model(self.trainer.model)
        SyncRefModelCallback.sync_target_model(policy, self.reference, 1 - self.decay)

    def on_save(self, args: Any, state: Any, _control: Any, **_: Any) -> None:
        weights = {name: one.detach().cpu() for name, one in self.reference.named_parameters()}
        save_file(weights, Path(args.output_dir) / f"checkpoint-{state.global_step}" / _FILE)


def follow(trainer: Any, decay: float) -> None:
    """Have the reference of ``trainer`` follow its policy."""
    # In front: a checkpoint is marked as whole by the callback that looks after it.
    trainer.callback_handler.callbacks.insert(0, EmaReference(trainer, decay))
