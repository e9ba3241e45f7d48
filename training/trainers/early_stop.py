"""A training that ends once held-out pairs get no better, and goes back to the best weights.

Imports torch and TRL: import this module inside functions only.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from prefloop.training.config import StopEarly
from prefloop.training.session.watch import save_snapshot

BEST = "best"
"""Folder beside the checkpoints for the weights that did best on held-out pairs."""
_LOSS, _ACCURACY = "eval_loss", "eval_rewards/accuracies"


@dataclass(frozen=True)
class HeldOutFigures:
    """What held-out pairs came to at a step."""

    step: int
    loss: float
    accuracy: float


class EarlyStop(TrainerCallback):  # type: ignore[misc]  # transformers' types are not followed
    """Has the held-out pairs of a trainer measured now and then, puts the best weights aside, and
    stops after too many measurements that are not the best."""

    def __init__(self, trainer: Any, config: StopEarly, folder: Path) -> None:
        self.trainer, self.config, self.folder = trainer, config, folder
        self.measured: list[HeldOutFigures] = []
        self.stopped = False

    def on_train_begin(self, _args: Any, state: Any, _control: Any, **_: Any) -> None:
        # What a resumed training measured before. The weights that were best then may have made
        # room for better ones since: those are then measured, and put aside, once more.
        self.measured = [_of(log) for log in state.log_history if _LOSS in log]
        self.stopped = bool(self.measured) and self._since_best() >= self.config.patience

    def on_step_end(self, _args: Any, state: Any, control: Any, **_: Any) -> None:
        if self.stopped:  # it was killed between that and its end
            control.should_training_stop = True
            return
        every = max(1, state.max_steps // self.config.times)
        if state.global_step % every == 0 or state.global_step == state.max_steps:
            control.should_evaluate = True

    def on_evaluate(
        self, _args: Any, state: Any, control: Any, metrics: dict[str, float], **_: Any
    ) -> None:
        self.measured.append(_of({**metrics, "step": state.global_step}))
        if self.best.step == state.global_step:
            save_snapshot(self.trainer, self.folder, self.best.step)
        late = self._since_best() >= self.config.patience
        if late and state.global_step < state.max_steps:
            self.stopped = control.should_training_stop = True

    def _since_best(self) -> int:
        """Measurements after the best one."""
        return len(self.measured) - 1 - self.measured.index(self.best)

    @property
    def best(self) -> HeldOutFigures:
        """The first of the best measurements."""
        by_loss = self.config.by == "loss"
        return min(self.measured, key=lambda one: one.loss if by_loss else -one.accuracy)

    def weights(self) -> Path | None:
        """The best ones, where they are not those that the trainer has now."""
        if not self.measured or self.best.step == self.trainer.state.global_step:
            return None
        folder = self.folder / str(self.best.step)
        return folder if folder.is_dir() else None

    def record(self) -> dict[str, Any]:
        """What became of it: the step whose weights are kept, whether it ended before the last
        step, and all that was measured."""
        kept = self.trainer.state.global_step if self.weights() is None else self.best.step
        return {
            "kept_step": kept,
            "stopped": self.stopped,
            "measured": [asdict(one) for one in self.measured],
        }


def _of(log: dict[str, float]) -> HeldOutFigures:
    return HeldOutFigures(int(log["step"]), log[_LOSS], log[_ACCURACY])
