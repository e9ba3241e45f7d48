"""A round of training on single answers with TRL's KTOTrainer (Ethayarajh et al. 2024, arXiv
2402.01306, equation 7): labelled answers in, a new policy folder out.

The KL term of a batch comes from its answers behind each other's prompts; answers are put in
order once, by seed, for all epochs, so that a batch mixes prompts. For what else holds, see
``prefloop.training.session.fit``.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from prefloop.data.hashing import json_hash
from prefloop.training.config import TrainConfig
from prefloop.training.errors import TrainingError
from prefloop.training.inputs.answers import Answers, read_answers
from prefloop.training.inputs.tokens import TokenIds
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
from prefloop.training.session.reference import append_columns, kept_columns, shared_logprobs
from prefloop.training.session.setup import on_one_gpu, optimiser_steps, shared_arguments


def train_kto(
    *,
    policy: Path,
    reference: Path,
    answers: Sequence[Path],
    out: Path,
    config: TrainConfig,
    seed: int,
    kept_reference: Path | None = None,
    on_step: OnStep | None = None,
    verbose: bool = False,
) -> TrainResult:
    """Train the policy in ``policy`` on labelled ``answers`` and save the new one as ``out``.

    ``answers`` are Parquet shards of ``schemas.UNPAIRED`` or of triples (see
    ``prefloop.training.inputs.answers.read_answers``). ``kept_reference`` is a file for the
    reference's log-probabilities. As ``prefloop.training.methods.dpo.train_dpo`` otherwise.

    Raises ``TrainingError`` if there is nothing to train on, or only answers of one label.
    """
    tokenizer = load_tokenizer(policy)
    max_length = min(config.max_length, context_length(policy))
    data = read_answers(
        answers, tokenizer, max_length=max_length, max_answers=config.max_pairs, seed=seed
    )
    if len(set(data.labels)) < 2:
        word = "good" if data.labels[0] else "bad"
        raise TrainingError(
            f"all {len(data)} answers are {word} ones, and KTO needs both: sample more candidates "
            "per prompt, or let another labeler judge"
        )
    if config.order == "length":
        from prefloop.training.trainers.order import LikeLengths

        data = data.take(list(LikeLengths(data.lengths(), config.batch_size, seed)))
    settings = settings_of(policy, reference, config, seed, max_length)
    fingerprint = json_hash({"answers": data.digest(), **settings})

    def build(checkpoints: Path, callbacks: list[Any]) -> Any:
        return _trainer(
            policy, reference, data, tokenizer, config, seed, checkpoints, fingerprint, callbacks,
            kept_reference, settings,
        )  # fmt: skip

    return fit(
        policy=policy, out=out, config=config, settings=settings, fingerprint=fingerprint,
        examples=len(data), dropped_overlong=data.dropped_overlong, build=build,
        on_step=on_step, verbose=verbose,
    )  # fmt: skip


def _trainer(
    policy: Path,
    reference: Path,
    data: Answers,
    tokenizer: Any,
    config: TrainConfig,
    seed: int,
    checkpoints: Path,
    fingerprint: str,
    callbacks: list[Any],
    kept: Path | None,
    settings: dict[str, Any],
) -> Any:
    from transformers import set_seed
    from trl import KTOConfig
    from trl.trainer.kto_trainer import DataCollatorForUnpairedPreference

    from prefloop.training.trainers.answer_trainers import LabelledTrainer

    opened = open_policy(policy, config)
    others = mismatched_answers(data.answers, config.batch_size)

    def compute() -> pa.Table:
        model = load_reference(reference, opened)
        own, other = (
            shared_logprobs(
                model, data.prompts, answers,
                batch_size=config.batch_size, autocast=opened.autocast,
            )
            for answers in (data.answers, others)
        )  # fmt: skip
        return pa.table({"ref_logps": own, "ref_KL_logps": other})

    key = {name: settings[name] for name in ("reference_revision", "precision", "batch_size")}
    key["quantize"] = opened.quantize
    columns = kept_columns(kept, json_hash({"answers": data.digest(), **key}), compute)
    ids = pa.large_list(pa.int32())
    table = pa.table(
        {
            "prompt_ids": pa.array(data.prompts, ids),
            "completion_ids": pa.array(data.answers, ids),
            "KL_completion_ids": pa.array(others, ids),
            "label": data.labels,
        }
    )
    steps = optimiser_steps(len(data), config)
    arguments = KTOConfig(
        **shared_arguments(config, checkpoints=checkpoints, steps=steps, seed=seed),
        beta=config.beta,
        desirable_weight=config.desirable_weight,
        undesirable_weight=config.undesirable_weight,
        max_length=None,  # read_answers has seen to it
        precompute_ref_log_probs=True,
        disable_dropout=not (config.lora and config.lora.dropout),
        use_cache=opened.model.config.use_cache,
    )
    set_seed(seed)
    return LabelledTrainer(
        model=opened.model,
        args=on_one_gpu(arguments),
        train_dataset=dataset_of(append_columns(table, columns), fingerprint),
        processing_class=tokenizer,
        data_collator=DataCollatorForUnpairedPreference(pad_token_id=tokenizer.pad_token_id),
        peft_config=opened.peft,
        callbacks=callbacks,
    )


def mismatched_answers(answers: Sequence[TokenIds], batch_size: int) -> list[TokenIds]:
    """For each row another answer of its batch: answer i - 1, and the last one for the first."""
    order = np.arange(len(answers))
    for start in range(0, len(order), batch_size):
        batch = order[start : start + batch_size]
        order[start : start + batch_size] = np.roll(batch, 1)
    return [answers[row] for row in order.tolist()]
