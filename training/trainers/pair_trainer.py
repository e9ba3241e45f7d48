"""TRL's DPOTrainer on pairs that are tokenised already.

Imports torch and TRL: import this module inside functions only.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import repeat
from typing import Any

import torch
from trl import DPOTrainer
from trl.trainer.dpo_trainer import DataCollatorForPreference

from prefloop.training.config import TrainConfig
from prefloop.training.trainers.answers_only import AnswersOnly
from prefloop.training.trainers.even_steps import EvenSteps
from prefloop.training.trainers.losses import OWN, PairLogps, own_loss, wpo_weights
from prefloop.training.trainers.offline_mixin import Prepared
from prefloop.training.trainers.order import Ordered


class PairTrainer(AnswersOnly, EvenSteps, Prepared, Ordered, DPOTrainer):  # type: ignore[misc]  # TRL has no types
    """DPOTrainer over a dataset of ``prompt_ids``, ``chosen_ids``, ``rejected_ids`` and, with
    ``precompute_ref_log_probs``, ``ref_chosen_logps`` and ``ref_rejected_logps``."""

    in_pairs = True

    settings: TrainConfig
    """Set by the caller before training."""

    def _set_signature_columns_if_needed(self) -> None:
        super()._set_signature_columns_if_needed()
        columns: list[str] = self._signature_columns
        if "p_chosen" not in columns:
            columns.append("p_chosen")

    def _compute_loss(self, model: Any, inputs: dict[str, Any], return_outputs: bool) -> Any:
        """The loss, as much of it as these pairs have a ``share`` in."""
        of_trl: Any = self
        weights, coefficient = of_trl.loss_weights, of_trl.router_aux_loss_coef
        of_trl.loss_weights = [
            weight * self.share.of(name)
            for name, weight in zip(of_trl.loss_types, weights, strict=True)
        ]
        of_trl.router_aux_loss_coef = coefficient and coefficient * self.share.rows
        try:
            return self._whole_loss(model, inputs, return_outputs)
        finally:
            of_trl.loss_weights, of_trl.router_aux_loss_coef = weights, coefficient

    def _whole_loss(self, model: Any, inputs: dict[str, Any], return_outputs: bool) -> Any:
        """TRL's loss plus those of ours that are asked for, all from one forward pass."""
        p_chosen = inputs.pop("p_chosen", None)
        own = [
            (name, weight)
            for name, weight in zip(
                self.settings.losses, self.settings.loss_weights or repeat(1.0), strict=False
            )
            if name in OWN
        ]
        if not own:
            return super()._compute_loss(model, inputs, return_outputs)
        seen: list[Any] = []

        def forward(**arguments: Any) -> Any:
            seen.append(model(**arguments))
            return seen[-1]

        with self._reference_heard() as reference:
            loss = super()._compute_loss(forward, inputs, return_outputs=False)
        logps = self._pair_logps(seen[0].log_probs, inputs, p_chosen, reference)
        counts = self._counts(seen[0], inputs)
        for name, weight in own:
            of_pairs = (counts * own_loss(name, logps, self.settings)).mean()
            loss = loss + weight * self.share.of(name) * of_pairs
        if not self.settings.uses_reference:
            self._rewards_without_reference(logps)
        return loss

    @contextmanager
    def _reference_heard(self) -> Iterator[list[Any]]:
        """What the reference model says meanwhile, where it is asked (and not in the data)."""
        heard: list[Any] = []
        if self.precompute_ref_logps:
            yield heard
            return
        listening = self.ref_model.register_forward_hook(
            lambda _model, _arguments, output: heard.append(output)
        )
        try:
            yield heard
        finally:
            listening.remove()

    def _pair_logps(
        self, per_token: Any, inputs: dict[str, Any], p_chosen: Any, reference: list[Any]
    ) -> PairLogps:
        mask = inputs["completion_mask"][..., 1:]
        chosen, rejected = (per_token[:, -mask.size(1) :] * mask).sum(dim=1).chunk(2)
        tokens = mask.sum(dim=1).chunk(2)
        weight = self._length_weight(mask)
        of_policy = (per_token[:, -mask.size(1) :] * weight).sum(dim=1).chunk(2)
        if reference:
            of_reference = (reference[0].log_probs[:, -mask.size(1) :] * weight).sum(dim=1).chunk(2)
        else:
            of_reference = inputs["ref_chosen_logps"], inputs["ref_rejected_logps"]
        return PairLogps(
            chosen=chosen,
            rejected=rejected,
            chosen_tokens=tokens[0],
            rejected_tokens=tokens[1],
            ratio=of_policy[0] - of_policy[1] - (of_reference[0] - of_reference[1]),
            chosen_ratio=of_policy[0] - of_reference[0],
            p_chosen=p_chosen.to(chosen),
        )

    def _counts(self, said: Any, inputs: dict[str, Any]) -> torch.Tensor | float:
        """How much each pair counts, as TRL counts it in its own losses."""
        if not self.settings.wpo:
            return 1.0
        mask = inputs["completion_mask"][..., 1:]
        length = mask.size(1)
        return wpo_weights(said.log_probs[:, -length:], said.log_sum_sq_probs[:, -length:], mask)

    def _length_weight(self, mask: torch.Tensor) -> torch.Tensor:
        """What each token [2B, T] counts in a log-ratio: those beyond the length of the pair's
        shorter answer ``ld_alpha`` (LD-DPO, Liu et al. 2024, arXiv 2409.06411)."""
        alpha = self.settings.ld_alpha
        if alpha is None:
            return mask
        shared = torch.minimum(*mask.sum(dim=1).chunk(2)).repeat(2).unsqueeze(1)
        return torch.where(mask.cumsum(dim=1) <= shared, 1.0, alpha) * mask

    def _rewards_without_reference(self, logps: PairLogps) -> None:
        """The rewards that are logged: beta times the log-probability per token (SimPO, eq. 4)."""
        chosen, rejected = (
            self.settings.beta * one.detach() for one in (logps.mean_chosen, logps.mean_rejected)
        )
        metrics = self._metrics["train" if self.model.training else "eval"]
        for name, value in {
            "rewards/chosen": chosen,
            "rewards/rejected": rejected,
            "rewards/margins": chosen - rejected,
            "rewards/accuracies": (chosen > rejected).float(),
        }.items():
            metrics[name][-1] = self.accelerator.gather(value).mean().item()


class PairCollator(DataCollatorForPreference):  # type: ignore[misc]
    """TRL's collator, which leaves out the columns that it does not know."""

    def torch_call(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        batch: dict[str, Any] = super().torch_call(examples)
        batch["p_chosen"] = torch.tensor([one["p_chosen"] for one in examples])
        return batch
