"""TRL's DPOTrainer on pairs that come leg by leg.

Imports torch and TRL: import this module inside functions only.
"""

from __future__ import annotations

from typing import Any

import torch

from prefloop.training.session.chunks import OnlineChunks
from prefloop.training.trainers.pair_trainer import PairCollator, PairTrainer


class OnlineTrainer(PairTrainer):
    """Each row of the dataset is the number of a forward pass; its pairs are asked of ``legs`` when
    it is due, so that they come from the weights of that very step."""

    legs: OnlineChunks
    """Set by the caller before training."""

    def training_step(self, model: Any, inputs: Any, *rest: Any) -> Any:
        rows = self.legs.rows(int(inputs["number"]))
        if not rows:  # no gradient: the optimiser leaves the weights alone
            return torch.zeros((), device=self.accelerator.device)
        collate = PairCollator(pad_token_id=self.processing_class.pad_token_id)
        return super().training_step(model, collate(rows), *rest)

    def _set_signature_columns_if_needed(self) -> None:
        super()._set_signature_columns_if_needed()
        if "number" not in self._signature_columns:
            self._signature_columns.append("number")


def one_number(examples: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    """The collator: rows [1] of the dataset as ``number`` [1]."""
    return {"number": torch.tensor([example["number"] for example in examples])}
