"""DPO on pairs that are sampled and labelled while it trains (Guo et al. 2024, arXiv 2402.04792).

A round is cut into legs of ``online_steps`` optimiser steps. Before each, the policy as it is
answers the leg's prompts and the answers are labelled; the leg's pairs are spread evenly over its
steps, so that a leg is always as many steps long, however many pairs were kept, and a step's pairs
go through the model ``batch_size`` at a time. With ``online_steps: 1`` every step is on-policy. For
what else holds, see ``prefloop.training.session.fit``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa

from prefloop.training.methods.dpo import dpo_arguments
from prefloop.training.session.chunks import OnlineChunks
from prefloop.training.session.job import Job
from prefloop.training.session.method import Session, TrainingData
from prefloop.training.session.on_policy import Prompts, Triples


@dataclass(frozen=True)
class OnlineDpo:
    """Direct preference optimisation on what the policy answers to ``prompts`` meanwhile."""

    takes_reference: ClassVar[bool] = True

    prompts: Prompts
    triples: Triples
    """Called once for each leg, in their order (again for legs that a killed attempt had begun; it
    must then give the same)."""

    def read(self, _job: Job, _tokenizer: Any, _max_length: int) -> TrainingData[Prompts]:
        """The prompts. Raises ``TrainingError`` where there are too few for a leg."""
        prompts = self.prompts
        prompts.require_leg(
            "one leg of online training (online_steps x batch_size x gradient_accumulation)"
        )
        return TrainingData(prompts, {"prompts": prompts.about()}, len(prompts.messages))

    def trainer(self, session: Session, rows: Prompts) -> Any:
        """TRL's trainer over the numbers of its steps."""
        from prefloop.training.trainers.online_trainer import OnlineTrainer, one_number

        config = session.job.config
        legs = OnlineChunks(session, self.triples, rows)
        steps = rows.legs * legs.steps
        arguments = dpo_arguments(session, steps * config.batch_size * config.gradient_accumulation)
        arguments.per_device_train_batch_size = 1  # the number of a step ...
        arguments.gradient_accumulation_steps = 1  # ... which adds up its pairs by itself
        arguments.train_sampling_strategy = "sequential"
        trainer = session.trainer(
            OnlineTrainer, arguments, _numbers(steps), ref_model=None, data_collator=one_number
        )
        trainer.settings = config
        trainer.legs = legs
        legs.weights.trainer = trainer
        return trainer


def _numbers(steps: int) -> pa.Table:
    """One row for each step; the other columns are what DPOTrainer looks for."""
    nothing = pa.array([[0]] * steps, pa.large_list(pa.int32()))
    columns: dict[str, Any] = {"number": np.arange(steps)}
    for name in ("prompt_ids", "chosen_ids", "rejected_ids"):
        columns[name] = nothing
    for name in ("ref_chosen_logps", "ref_rejected_logps"):
        columns[name] = np.zeros(steps)
    return pa.table(columns)
