"""TRL's DPOTrainer on pairs that come leg by leg.

Imports torch and TRL: import this module inside functions only.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from prefloop.training.session.chunks import OnlineChunks
from prefloop.training.trainers.even_steps import PartOfStep
from prefloop.training.trainers.pair_trainer import PairCollator, PairTrainer


class OnlineTrainer(PairTrainer):
    """Each row of the dataset is the number of an optimiser step; its pairs are asked of ``legs``
    when it is due, so that they come from the weights of that very step."""

    legs: OnlineChunks
    """Set by the caller before training."""

    def training_step(self, model: Any, inputs: Any, *rest: Any) -> Any:
        """The gradient of the loss of all pairs of the step, however many, computed on
        ``batch_size`` of them at a time (``aot`` compares the sorted values of those)."""
        rows = self.legs.rows(int(inputs["number"]))
        total = torch.zeros((), device=self.accelerator.device)
        if not rows:  # no gradient: the optimiser leaves the weights alone
            return total
        collate = PairCollator(pad_token_id=self.processing_class.pad_token_id)
        parts = np.array_split(np.arange(len(rows)), -(-len(rows) // self.settings.batch_size))
        tokens = [sum(len(rows[row]["chosen_ids"]) for row in part) for part in parts]
        metrics = self._metrics["train"]
        before = {name: len(values) for name, values in metrics.items()}
        for part, of_chosen in zip(parts, tokens, strict=True):
            self.share = PartOfStep(len(part) / len(rows), of_chosen / sum(tokens))
            batch = collate([rows[row] for row in part])
            total = total + super().training_step(model, batch, *rest)
        self.share = PartOfStep()
        for name, values in metrics.items():
            if name != "num_tokens":
                new = values[before.get(name, 0) :]
                values[before.get(name, 0) :] = [float(np.average(new, weights=[*map(len, parts)]))]
        return total

    def _set_signature_columns_if_needed(self) -> None:
        super()._set_signature_columns_if_needed()
        if "number" not in self._signature_columns:
            self._signature_columns.append("number")


def one_number(examples: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    """The collator: rows [1] of the dataset as ``number`` [1]."""
    return {"number": torch.tensor([example["number"] for example in examples])}
