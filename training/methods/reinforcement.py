"""GRPO and RLOO with TRL's trainers; answers and rewards come from outside, leg by leg.

A leg is one optimiser step: its prompts, each with a group of answers of the policy as it is. The
baselines of ``prefloop.training.methods.dpo``, on the same sampler and labelers. For what else
holds, see ``prefloop.training.session.fit``.

* GRPO (Shao et al. 2024, arXiv 2402.03300, equation 3): advantages are rewards less the group's
  mean, by default over its standard deviation; the KL to the reference is part of the loss.
* RLOO (Ahmadian et al. 2024, arXiv 2402.14740, equation 7): the baseline is the mean of the other
  answers' rewards; the KL is taken off the reward.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from prefloop.data.hashing import json_hash
from prefloop.training.config import TrainConfig
from prefloop.training.inputs.tokens import end_token, prompt_ids
from prefloop.training.policy.checkpoints import context_length, load_tokenizer
from prefloop.training.session.fit import (
    OnStep,
    TrainResult,
    dataset_of,
    fit,
    load_reference,
    open_policy,
    settings_of,
)
from prefloop.training.session.on_policy import Groups, Prompts, Weights
from prefloop.training.session.setup import on_one_gpu, shared_arguments


def train_reinforcement(
    *,
    policy: Path,
    reference: Path,
    prompts: Prompts,
    groups: Groups,
    group_size: int,
    temperature: float,
    max_tokens: int,
    out: Path,
    config: TrainConfig,
    seed: int,
    on_step: OnStep | None = None,
    verbose: bool = False,
) -> TrainResult:
    """Train the policy in ``policy`` by ``config.method`` (``grpo`` or ``rloo``).

    ``groups`` is called once for each leg, in their order (again for legs that a killed attempt
    had begun; it must then give the same), and gives ``group_size`` answers to each of its prompts,
    sampled at ``temperature``. Else as ``prefloop.training.methods.dpo.train_dpo``. Raises
    ``TrainingError`` where there are too few prompts for a step.
    """
    prompts.require_leg("one step (batch_size x gradient_accumulation / sample.n)")
    tokenizer = load_tokenizer(policy)
    max_length = min(config.max_length, context_length(policy))
    settings = settings_of(policy, reference, config, seed, max_length)
    sampled = {"group_size": group_size, "temperature": temperature}
    fingerprint = json_hash({"prompts": prompts.about(), **sampled, **settings})

    def build(checkpoints: Path, callbacks: list[Any]) -> Any:
        from transformers import set_seed
        from trl import GRPOConfig, RLOOConfig
        from trl.trainer.utils import add_fused_lm_head

        from prefloop.training.trainers.rl_trainers import TRAINERS

        opened = open_policy(policy, config)
        shared = shared_arguments(config, checkpoints=checkpoints, steps=prompts.legs, seed=seed)
        shared |= {
            "num_generations": group_size,
            "max_completion_length": max_tokens,
            "temperature": temperature,
            "epsilon": config.clip,
            "beta": 0.0,  # else TRL loads a reference of its own; ours is set below
            "shuffle_dataset": False,  # the legs have an order
            "remove_unused_columns": False,
            "disable_dropout": not (config.lora and config.lora.dropout),
            "use_cache": opened.model.config.use_cache,
        }
        if config.method == "grpo":
            scale = "group" if config.scale_rewards else "none"
            arguments = GRPOConfig(**shared, loss_type="grpo", scale_rewards=scale)
        else:
            arguments = RLOOConfig(**shared)
        set_seed(seed)
        trainer = TRAINERS[config.method](
            model=opened.model,
            reward_funcs=[_never_called],
            args=on_one_gpu(arguments),
            train_dataset=dataset_of(_table(prompts), fingerprint),
            processing_class=tokenizer,
            peft_config=opened.peft,
            callbacks=callbacks,
        )
        frozen = load_reference(reference, opened)
        add_fused_lm_head(frozen, temperature=temperature)
        trainer.ref_model = trainer.accelerator.prepare_model(
            frozen.requires_grad_(False), evaluation_mode=True
        )
        trainer.beta = config.beta
        trainer.groups = groups
        trainer.per_leg = prompts.per_leg
        trainer.end = end_token(tokenizer)
        trainer.prompts = [prompt_ids(tokenizer, one).tolist() for one in prompts.messages]
        trainer.weights = Weights(policy, checkpoints / "weights")
        trainer.weights.trainer = trainer
        return trainer

    return fit(
        policy=policy, out=out, config=config, settings=settings, fingerprint=fingerprint,
        examples=prompts.legs * prompts.per_leg, dropped_overlong=0, build=build,
        on_step=on_step, verbose=verbose,
    )  # fmt: skip


def _never_called(**_: Any) -> list[float]:
    raise AssertionError("rewards come with the answers")


def _table(prompts: Prompts) -> pa.Table:
    used = prompts.messages[: prompts.legs * prompts.per_leg]
    # What the trainer does with ``prompt`` is decode and log; it is asked for nowhere.
    return pa.table({"prompt": [""] * len(used), "row": np.arange(len(used))})
