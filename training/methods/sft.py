"""A round of training on the chosen answers alone with TRL's SFTTrainer.

The loss is the mean negative log-probability of the answers' tokens; the prompt's have none. For
what else holds, see ``prefloop.training.session.fit``.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from prefloop.data.hashing import json_hash
from prefloop.training.config import TrainConfig
from prefloop.training.inputs.answers import Answers, read_answers
from prefloop.training.policy.checkpoints import context_length, load_tokenizer
from prefloop.training.session.fit import (
    OnStep,
    TrainResult,
    dataset_of,
    fit,
    open_policy,
    settings_of,
)
from prefloop.training.session.setup import on_one_gpu, optimiser_steps, shared_arguments


def train_sft(
    *,
    policy: Path,
    answers: Sequence[Path],
    out: Path,
    config: TrainConfig,
    seed: int,
    on_step: OnStep | None = None,
    verbose: bool = False,
) -> TrainResult:
    """Train the policy in ``policy`` on the good ones of ``answers`` and save it as ``out``.

    ``answers`` are Parquet shards of triples, whose chosen answers are taken once each, or of
    ``schemas.UNPAIRED``. As ``prefloop.training.methods.dpo.train_dpo`` otherwise.
    """
    tokenizer = load_tokenizer(policy)
    max_length = min(config.max_length, context_length(policy))
    data = read_answers(
        answers, tokenizer, max_length=max_length, max_answers=config.max_pairs, seed=seed,
        good_only=True,
    )  # fmt: skip
    settings = settings_of(policy, None, config, seed, max_length)
    fingerprint = json_hash({"answers": data.digest(), **settings})

    def build(checkpoints: Path, callbacks: list[Any]) -> Any:
        from transformers import set_seed
        from trl import SFTConfig
        from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

        from prefloop.training.trainers.answer_trainers import PretokenizedSFTTrainer

        opened = open_policy(policy, config)
        steps = optimiser_steps(len(data), config)
        arguments = SFTConfig(
            **shared_arguments(config, checkpoints=checkpoints, steps=steps, seed=seed),
            max_length=None,  # read_answers has seen to it
            dataset_kwargs={"skip_prepare_dataset": True},
            use_cache=opened.model.config.use_cache,
        )
        set_seed(seed)
        trainer = PretokenizedSFTTrainer(
            model=opened.model,
            args=on_one_gpu(arguments),
            train_dataset=dataset_of(_table(data), fingerprint),
            processing_class=tokenizer,
            data_collator=DataCollatorForLanguageModeling(pad_token_id=tokenizer.pad_token_id),
            peft_config=opened.peft,
            callbacks=callbacks,
        )
        if config.order == "length":
            trainer.lengths = data.lengths()
        return trainer

    return fit(
        policy=policy, out=out, config=config, settings=settings, fingerprint=fingerprint,
        examples=len(data), dropped_overlong=data.dropped_overlong, build=build,
        on_step=on_step, verbose=verbose,
    )  # fmt: skip


def _table(data: Answers) -> pa.Table:
    """``input_ids``, and ``labels`` that leave out the prompt."""
    ids, labels = [], []
    for prompt, answer in zip(data.prompts, data.answers, strict=True):
        ids.append(np.concatenate([prompt, answer]))
        labels.append(np.concatenate([np.full(len(prompt), -100, np.int32), answer]))
    kind = pa.large_list(pa.int32())
    return pa.table({"input_ids": pa.array(ids, kind), "labels": pa.array(labels, kind)})
