"""TRL's GRPOTrainer and RLOOTrainer on answers and rewards that come leg by leg.

Imports torch and TRL: import this module inside functions only.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from trl import GRPOTrainer, RLOOTrainer

from prefloop.training.inputs.tokens import answer_ids
from prefloop.training.session.on_policy import Group, Groups, Weights
from prefloop.training.trainers.offline_mixin import OfflineMixin


class _FromGroups(OfflineMixin):
    """In front of a trainer: its prompts, answers and rewards are those of ``groups``."""

    groups: Groups
    """This and the following are set by the caller before training."""
    prompts: list[list[int]]
    """Token ids of each row of the dataset."""
    per_leg: int
    held_out: list[bool]
    """Of each row, whether nothing is to be learned from it."""
    end: int
    template_kwargs: Mapping[str, Any]
    """Id of the token that ends an answer."""
    weights: Weights
    _rows: list[int]
    _answers: list[tuple[str | Sequence[int], bool, float]]

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> Any:
        """``inputs``: each row of a leg as often in sequence as its group has answers."""
        self._rows = [example["row"] for example in inputs]
        leg = self._rows[0] // self.per_leg
        made = self.groups(leg, self.weights.now)
        used: dict[int, int] = {}
        self._answers = []
        for row in self._rows:
            place = used.get(row, 0)
            used[row] = place + 1
            self._answers.append(_answer(made[row - leg * self.per_leg], place))
        batch = super()._generate_and_score_completions(inputs)  # type: ignore[misc]
        apart = torch.tensor([self.held_out[row] for row in self._rows])
        if apart.any():
            self._ignore(batch, apart.to(batch["advantages"].device))
        return batch

    def _ignore(self, batch: dict[str, Any], rows: torch.Tensor) -> None:
        """Let nothing be learned from ``rows`` (bool [B]) of ``batch``."""
        batch["advantages"] = batch["advantages"].masked_fill(rows, 0.0)

    def _tokenize_prompts(
        self, _prompts: list[Any]
    ) -> tuple[list[list[int]], None, dict[str, Any]]:
        return [self.prompts[row] for row in self._rows], None, {}

    def _answer_ids(self) -> list[list[int]]:
        tokenizer = self.processing_class  # type: ignore[attr-defined]
        texts = [said if isinstance(said, str) else "" for said, _, _ in self._answers]
        ids = answer_ids(tokenizer, texts, self.end, self.template_kwargs)
        return [
            list(said)
            if not isinstance(said, str)
            else one.tolist()
            if complete or len(one) == 1
            else one[:-1].tolist()
            for one, (said, complete, _) in zip(ids, self._answers, strict=True)
        ]

    def _calculate_rewards(self, *_: Any) -> torch.Tensor:
        device = self.accelerator.device  # type: ignore[attr-defined]
        return torch.tensor([[reward] for _, _, reward in self._answers], device=device)


def _answer(group: Group, place: int) -> tuple[str | Sequence[int], bool, float]:
    """Text, whether it has its end, and reward; nothing, without a reward, where there is none."""
    if place >= len(group.texts):
        return "", True, math.nan
    return group.texts[place], group.complete[place], group.rewards[place]


class GroupTrainer(_FromGroups, GRPOTrainer):  # type: ignore[misc]  # TRL has no types
    """GRPO."""

    def _ignore(self, batch: dict[str, Any], rows: torch.Tensor) -> None:
        super()._ignore(batch, rows)
        # The KL to the reference is part of the loss: the mask of tools' words takes it out too.
        kept = (~rows).int().unsqueeze(1)
        batch["tool_mask"] = kept.expand_as(batch["completion_mask"]).contiguous()

    def _generate_single_turn(self, *_: Any, **__: Any) -> tuple[list[list[int]], None]:
        return self._answer_ids(), None


class LeaveOneOutTrainer(_FromGroups, RLOOTrainer):  # type: ignore[misc]
    """RLOO."""

    def _generate_single_turn(self, *_: Any, **__: Any) -> list[list[int]]:
        return self._answer_ids()


TRAINERS: dict[str, Any] = {"grpo": GroupTrainer, "rloo": LeaveOneOutTrainer}
"""By the name of the method."""
