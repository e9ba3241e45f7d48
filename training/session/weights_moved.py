"""Whether a training has changed the weights at all, and the likely reason where it has not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from prefloop.training.config import Optimisation


def weight_sums(model: Any) -> list[int]:
    """One number for each parameter that is trained: the sum of its bits, read as integers."""
    import torch

    as_integers = {8: torch.int64, 4: torch.int32, 2: torch.int16, 1: torch.uint8}
    return [
        int(part.detach().view(as_integers[part.element_size()]).sum(dtype=torch.int64))
        for part in model.parameters()
        if part.requires_grad
    ]


def unchanged(config: Optimisation, history: Sequence[Mapping[str, float]]) -> str:
    """What to say of a training that left every weight as it was."""
    if not history:
        why = "it took no optimiser step: raise epochs"
    elif not any(step.get("learning_rate", 1.0) for step in history):
        why = (
            "the learning rate was 0 at every step, as it is in the first step of a warm-up: lower "
            "warmup_ratio, or train more steps (epochs, a smaller batch_size)"
        )
    elif not any(step.get("grad_norm", 1.0) for step in history):
        why = (
            "every gradient was 0: there is nothing to learn from these data with this loss (look "
            "at beta and the loss's weights)"
        )
    else:
        why = (
            f"learning_rate {config.learning_rate:g} is below what the weights' precision can "
            "hold: raise it"
        )
    return f"the weights did not change in {len(history)} steps: {why}"
