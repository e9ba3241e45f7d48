"""GRPO and RLOO with TRL's trainers; answers and rewards come from outside, leg by leg.

A leg is one optimiser step: its prompts, each with a group of answers of the policy as it is. The
baselines of ``prefloop.training.methods.dpo``, on the same sampler and labelers. For what else
holds, see ``prefloop.training.session.fit``.

* GRPO (Shao et al. 2024, arXiv 2402.03300, equation 3): advantages are rewards less the group's
  mean, by default over its standard deviation; the KL to the reference is part of the loss. How
  tokens are averaged is TRL's ``loss_type`` (``policy_loss``).
* RLOO (Ahmadian et al. 2024, arXiv 2402.14740, equation 7): the baseline is the mean of the other
  answers' rewards; the KL is taken off the reward.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa

from prefloop.data.conversations.answer_edges import end_tokens
from prefloop.training.inputs.tokens import check_embedding, end_token, prompt_ids
from prefloop.training.policy.checkpoints import embeddings
from prefloop.training.session.checkpoint_folder import WEIGHTS
from prefloop.training.session.job import Job
from prefloop.training.session.method import Session, TrainingData
from prefloop.training.session.on_policy import Groups, Prompts, Weights
from prefloop.training.session.open_policy import load_reference
from prefloop.training.session.setup import disables_dropout


@dataclass(frozen=True)
class Reinforcement:
    """GRPO or RLOO, as the config's ``method`` says, on ``groups`` of answers to ``prompts``."""

    takes_reference: ClassVar[bool] = True

    prompts: Prompts
    groups: Groups
    """Called once for each leg, in their order (again for legs that a killed attempt had begun; it
    must then give the same)."""
    group_size: int
    """Answers to each prompt."""
    temperature: float
    """That they are sampled at."""
    max_tokens: int

    def read(self, _job: Job, _tokenizer: Any, _max_length: int) -> TrainingData[Prompts]:
        """The prompts. Raises ``TrainingError`` where there are too few for a step."""
        prompts = self.prompts
        prompts.require_leg("one step (batch_size x gradient_accumulation / sample.n)")
        decides = {
            "prompts": prompts.about(),
            "group_size": self.group_size,
            "temperature": self.temperature,
        }
        return TrainingData(prompts, decides, prompts.legs * prompts.per_leg)

    def trainer(self, session: Session, rows: Prompts) -> Any:
        """TRL's trainer, its answers and rewards taken from ``groups``."""
        from prefloop.training.trainers.rl_trainers import TRAINERS

        job, tokenizer = session.job, session.tokenizer
        trainer = session.trainer(
            TRAINERS[job.config.method],
            self._arguments(session),
            _table(rows),
            reward_funcs=[_never_called],
        )
        trainer.beta = job.config.beta
        if job.config.beta:
            _compare(trainer, load_reference(job.reference, session.opened), self.temperature)
        if job.config.beta and job.config.reference == "ema":
            from prefloop.training.trainers.ema import follow

            follow(trainer, job.config.ema_decay)
        # TRL corrects for the one engine that it knows; nothing else looks at this from here on.
        trainer.use_vllm = job.config.sampler_correction is not None
        trainer.masks_truncated = job.config.mask_truncated
        trainer.groups = self.groups
        trainer.per_leg = rows.per_leg
        trainer.held_out = [rows.is_held_out(one) for one in rows.messages]
        trainer.end = end_token(tokenizer)
        # By these TRL counts answers that were not cut; it knows nothing of the template's.
        trainer.eos_token_ids = end_tokens(tokenizer, trainer.eos_token_ids)
        trainer.template_kwargs = job.rendering.template_kwargs
        prompts = [
            prompt_ids(tokenizer, one, job.rendering.template_kwargs) for one in rows.messages
        ]
        check_embedding(embeddings(job.policy), job.policy, prompts)
        trainer.prompts = [ids.tolist() for ids in prompts]
        trainer.weights = Weights(job.policy, session.checkpoints / WEIGHTS)
        trainer.weights.trainer = trainer
        return trainer

    def _arguments(self, session: Session) -> Any:
        from trl import GRPOConfig, RLOOConfig

        config = session.job.config
        shared = {
            **session.arguments(self.prompts.legs),
            "num_generations": self.group_size,
            "max_completion_length": self.max_tokens,
            "temperature": self.temperature,
            "epsilon": config.clip,
            "beta": 0.0,  # else TRL loads a reference of its own; ours is set later
            "shuffle_dataset": False,  # the legs have an order
            "remove_unused_columns": False,
            "disable_dropout": disables_dropout(config),
        }
        if config.method == "rloo":
            return RLOOConfig(**shared)
        return GRPOConfig(
            **shared,
            loss_type=config.policy_loss,
            scale_rewards="group" if config.scale_rewards else "none",
            epsilon_high=config.clip_high,
            vllm_importance_sampling_mode=f"sequence_{config.sampler_correction or 'truncate'}",
            vllm_importance_sampling_clip_max=config.sampler_correction_max,
        )


def _compare(trainer: Any, reference: Any, temperature: float) -> None:
    """Have the trainer hold its policy to ``reference``."""
    from trl.trainer.utils import add_fused_lm_head

    from prefloop.training.trainers.answers_only import on_answers_only

    add_fused_lm_head(reference, temperature=temperature)
    on_answers_only(reference, temperature=temperature)
    trainer.ref_model = trainer.accelerator.prepare_model(
        reference.requires_grad_(False), evaluation_mode=True
    )


def _never_called(**_: Any) -> list[float]:
    raise AssertionError("rewards come with the answers")


def _table(prompts: Prompts) -> pa.Table:
    used = prompts.messages[: prompts.legs * prompts.per_leg]
    # What the trainer does with ``prompt`` is decode and log; it is asked for nowhere.
    return pa.table({"prompt": [""] * len(used), "row": np.arange(len(used))})
