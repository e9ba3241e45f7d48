"""The mean of several policies' weights, as a reference that moves more slowly than they do."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from prefloop.data.storage.begun_folder import begin_folder
from prefloop.training.errors import TrainingError
from prefloop.training.policy.checkpoints import complete_policy, is_adapter, load_model


def average_policies(policies: Sequence[Path], out: Path) -> Path:
    """Write the mean of the weights of ``policies`` (whole models, equal shapes) as ``out``.

    Every policy counts the same; sums are in float64. ``out`` appears when it is complete, and one
    that is there is left as it is. Raises ``TrainingError`` for adapters and for shapes that
    differ.
    """
    import torch

    if out.exists():
        return out
    adapter = next((policy for policy in policies if is_adapter(policy)), None)
    if adapter:
        raise TrainingError(
            f"{adapter} is an adapter, and the mean of adapters is not that of the policies: set "
            "train.reference to start or previous"
        )
    model = load_model(policies[0], dtype=torch.float32, device="cpu")
    total = {name: value.double() for name, value in model.state_dict().items()}
    for policy in policies[1:]:
        other = load_model(policy, dtype=torch.float32, device="cpu").state_dict()
        if {n: v.shape for n, v in other.items()} != {n: v.shape for n, v in total.items()}:
            raise TrainingError(f"{policy} has other weights than {policies[0]}: they have no mean")
        for name, value in other.items():
            total[name] += value.double()
    model.load_state_dict({name: (value / len(policies)).float() for name, value in total.items()})
    partial = begin_folder(out)
    model.save_pretrained(partial)
    complete_policy(policies[0], partial)
    partial.rename(out)
    return out
