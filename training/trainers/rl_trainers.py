"""TRL's GRPOTrainer and RLOOTrainer on answers and rewards that come leg by leg.

Imports torch and TRL: import this module inside functions only.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from trl import GRPOTrainer, RLOOTrainer

from prefloop.training.inputs.tokens import answer_ids
from prefloop.training.session.on_policy import Group, Groups, Weights
from prefloop.training.trainers.answers_only import AnswersOnly
from prefloop.training.trainers.offline_mixin import OfflineMixin

logger = logging.getLogger(__name__)


class _FromGroups(OfflineMixin):
    """In front of a trainer: its prompts, answers and rewards are those of ``groups``."""

    groups: Groups
    """This and the following are set by the caller before training."""
    prompts: list[list[int]]
    """Token ids of each row of the dataset."""
    per_leg: int
    held_out: list[bool]
    """Of each row, whether nothing is to be learned from it."""
    masks_truncated: bool
    """Whether nothing is to be learned from answers that were cut."""
    end: int
    """Id of the token that ends an answer."""
    template_kwargs: Mapping[str, Any]
    weights: Weights
    _rows: list[int]
    _answers: list[_Answer]

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
        cut = [not one.complete for one in self._answers]
        metrics = self._metrics["train"]  # type: ignore[attr-defined]
        metrics["completions/truncated"].append(sum(cut) / len(cut))
        apart = torch.tensor([self.held_out[row] for row in self._rows])
        if self.masks_truncated:
            apart |= torch.tensor(cut)
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
        said = [one.said for one in self._answers]
        texts = [one if isinstance(one, str) else "" for one in said]
        ids = answer_ids(tokenizer, texts, self.end, self.template_kwargs)
        return [
            list(answer.said)
            if not isinstance(answer.said, str)
            else one.tolist()
            if answer.complete or len(one) == 1
            else one[:-1].tolist()
            for one, answer in zip(ids, self._answers, strict=True)
        ]

    def _calculate_rewards(self, *_: Any) -> torch.Tensor:
        device = self.accelerator.device  # type: ignore[attr-defined]
        return torch.tensor([[one.reward] for one in self._answers], device=device)


@dataclass(frozen=True)
class _Answer:
    """One answer of a group; see ``prefloop.training.session.on_policy.Group``."""

    said: str | Sequence[int]
    complete: bool
    reward: float
    logprob: float | None = None
    tokens: int | None = None
    """That ``logprob`` is the sum over."""

    def told(self, tokens: int) -> float:
        """What the sampler said of each of ``tokens``, on average: TRL adds it up again. NaN, which
        TRL gives the weight 1, where it said nothing, or of the answer in other tokens."""
        if self.logprob is None or tokens != self.tokens:
            return math.nan
        return self.logprob / tokens


def _answer(group: Group, place: int) -> _Answer:
    """That of ``group`` at a place; an empty one, without a reward, where there is none."""
    if place >= len(group.texts):
        return _Answer("", True, math.nan)
    answer = _Answer(group.texts[place], group.complete[place], group.rewards[place])
    if not group.logprobs:
        return answer
    return replace(answer, logprob=group.logprobs[place], tokens=group.tokens[place])


class GroupTrainer(AnswersOnly, _FromGroups, GRPOTrainer):  # type: ignore[misc]  # TRL has no types
    """GRPO."""

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> Any:
        batch = super()._generate_and_score_completions(inputs)
        for name in ("mean", "max"):  # of tokens, where only the sum over an answer is known
            self._metrics["train"].pop(f"sampling/sampling_logp_difference/{name}", None)
        return batch

    def _ignore(self, batch: dict[str, Any], rows: torch.Tensor) -> None:
        super()._ignore(batch, rows)
        # The KL to the reference is part of the loss: the mask of tools' words takes it out too.
        kept = (~rows).int().unsqueeze(1)
        batch["tool_mask"] = kept.expand_as(batch["completion_mask"]).contiguous()
        learned = batch["completion_mask"] * batch["tool_mask"]
        batch["num_items_in_batch"] = self.accelerator.gather(learned.sum()).sum()

    def _generate_single_turn(
        self, *_: Any, **__: Any
    ) -> tuple[list[list[int]], list[list[float]] | None]:
        ids = self._answer_ids()
        if not self.use_vllm:
            return ids, None
        answers = zip(self._answers, ids, strict=True)
        told = [[one.told(len(tokens))] * len(tokens) for one, tokens in answers]
        unknown = sum(math.isnan(one[0]) for one in told)
        self._metrics["train"]["sampling/unknown"].append(unknown / len(told))
        if unknown == len(told):
            logger.warning(
                "sampler_correction: of no answer of a step is it known how likely the engine "
                "found it in the tokens that are trained on; each has the weight 1"
            )
        return ids, told


class LeaveOneOutTrainer(AnswersOnly, _FromGroups, RLOOTrainer):  # type: ignore[misc]
    """RLOO."""

    def _generate_single_turn(self, *_: Any, **__: Any) -> list[list[int]]:
        return self._answer_ids()


TRAINERS: dict[str, Any] = {"grpo": GroupTrainer, "rloo": LeaveOneOutTrainer}
"""By the name of the method."""
