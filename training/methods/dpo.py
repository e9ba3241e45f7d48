"""A round of training on pairs with TRL's DPOTrainer: triples in, a new policy folder out.

No pair is cut to fit: it is trained on whole, or dropped and counted. For what else holds, see
``prefloop.training.session.fit``.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from prefloop.data.hashing import json_hash
from prefloop.training.config import OWN_LOSSES, TrainConfig
from prefloop.training.inputs.pairs import Pairs, read_pairs
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

if TYPE_CHECKING:
    import torch


def train_dpo(
    *,
    policy: Path,
    reference: Path,
    triples: Sequence[Path],
    out: Path,
    config: TrainConfig,
    seed: int,
    replay: Sequence[Path] = (),
    kept_reference: Path | None = None,
    on_step: OnStep | None = None,
    verbose: bool = False,
) -> TrainResult:
    """Train the policy in ``policy`` on ``triples`` and save the new one as ``out``.

    ``policy`` and ``reference`` are checkpoint or adapter folders, ``triples`` Parquet shards of
    ``schemas.TRIPLE``, ``replay`` those of earlier rounds to draw some of. ``kept_reference`` is a
    file for the reference's log-probabilities, which are computed once for these pairs.
    ``on_step`` gets each step's record; an exception it raises stops the training and passes
    through, and nothing is saved. An interrupted call with the same arguments goes on from its last
    checkpoint, and an ``out`` that these arguments made already is not made again: its recorded
    result is returned.

    Raises ``TrainingError`` if there is nothing to train on, a model folder is unusable, the
    loss becomes NaN, or ``out`` holds something else.
    """
    tokenizer = load_tokenizer(policy)
    max_length = min(config.max_length, context_length(policy))
    pairs = read_pairs(
        triples, tokenizer, max_length=max_length, max_pairs=config.max_pairs, seed=seed,
        replay=replay, replay_share=config.replay_share, by_margin=config.order == "margin",
    )  # fmt: skip
    settings = settings_of(policy, reference, config, seed, max_length)
    fingerprint = json_hash({"pairs": pairs.digest(), **settings})

    def build(checkpoints: Path, callbacks: list[Any]) -> Any:
        return _trainer(
            policy, reference, pairs, tokenizer, config, seed, checkpoints, fingerprint, callbacks,
            kept_reference, settings,
        )  # fmt: skip

    return fit(
        policy=policy, out=out, config=config, settings=settings, fingerprint=fingerprint,
        examples=len(pairs), dropped_overlong=pairs.dropped_overlong, build=build,
        on_step=on_step, verbose=verbose,
    )  # fmt: skip


def _trainer(
    policy: Path,
    reference: Path,
    pairs: Pairs,
    tokenizer: Any,
    config: TrainConfig,
    seed: int,
    checkpoints: Path,
    fingerprint: str,
    callbacks: list[Any],
    kept: Path | None,
    settings: dict[str, Any],
) -> Any:
    """The trainer, ready to run; the reference's log-probabilities are kept in ``kept``."""
    from transformers import set_seed

    from prefloop.training.trainers.pair_trainer import PairCollator, PairTrainer

    opened = open_policy(policy, config)
    live_reference = None
    table = pairs.table()
    if not config.uses_reference:
        table = append_columns(table, no_reference(len(pairs)))
    elif config.precompute_reference_logprobs:
        key = {name: settings[name] for name in ("reference_revision", "ld_alpha", "precision")}
        key["quantize"] = opened.quantize

        def compute() -> pa.Table:
            same = policy.resolve() == reference.resolve() and opened.whole
            return reference_logps(
                pairs,
                opened.model if same else load_reference(reference, opened),
                batch_size=2 * config.batch_size,  # two sequences a pair, as in training
                autocast=opened.autocast,
                ld_alpha=config.ld_alpha,
            )

        columns = kept_columns(kept, json_hash({"pairs": pairs.token_digest(), **key}), compute)
        table = append_columns(table, columns)
    else:
        live_reference = load_reference(reference, opened)

    arguments = on_one_gpu(dpo_arguments(config, len(pairs), checkpoints, seed, opened))
    arguments.precompute_ref_log_probs = live_reference is None
    set_seed(seed)
    trainer = PairTrainer(
        model=opened.model,
        ref_model=live_reference,
        args=arguments,
        train_dataset=dataset_of(table, fingerprint),
        processing_class=tokenizer,
        data_collator=PairCollator(pad_token_id=tokenizer.pad_token_id),
        peft_config=opened.peft,
        callbacks=callbacks,
    )
    trainer.settings = config
    if config.order == "length":
        trainer.lengths = pairs.lengths()
    return trainer


def dpo_arguments(
    config: TrainConfig, pairs: int, checkpoints: Path, seed: int, opened: Any
) -> Any:
    """TRL's ``DPOConfig`` for ``config``, with reference log-probabilities out of the data."""
    from trl import DPOConfig

    weights = config.loss_weights or (1.0,) * len(config.losses)
    of_trl = {
        name: weight
        for name, weight in zip(config.losses, weights, strict=True)
        if name not in OWN_LOSSES
    }
    steps = optimiser_steps(pairs, config)
    return DPOConfig(
        **shared_arguments(config, checkpoints=checkpoints, steps=steps, seed=seed),
        # With a loss of ours alone, TRL's counts for nothing.
        loss_type=list(of_trl) or ["sigmoid"],
        loss_weights=list(of_trl.values()) or [0.0],
        ld_alpha=config.ld_alpha,
        f_divergence_type=config.divergence,
        f_alpha_divergence_coef=config.divergence_alpha,
        beta=config.beta,
        label_smoothing=config.label_smoothing,
        train_sampling_strategy="sequential" if config.order == "margin" else "random",
        max_length=None,  # read_pairs has seen to it
        precompute_ref_log_probs=True,
        # TRL switches off every dropout, an adapter's own too; leave it on where it was asked for.
        disable_dropout=not (config.lora and config.lora.dropout),
        # TRL trains without a cache in any case; this is what the saved config.json will say, and
        # false, the trainer's default, would make the new policy slow to sample from.
        use_cache=opened.model.config.use_cache,
    )


def no_reference(pairs: int) -> pa.Table:
    """In place of ``reference_logps``, for losses that no reference goes into."""
    nothing = np.zeros(pairs)
    return pa.table({"ref_chosen_logps": nothing, "ref_rejected_logps": nothing})


def reference_logps(
    pairs: Pairs,
    model: Any,
    *,
    batch_size: int,
    autocast: torch.dtype | None,
    ld_alpha: float | None,
) -> pa.Table:
    """Log-probabilities (float64, nats) of both answers of each pair under ``model``, in columns of
    the names that TRL's collator reads.

    With ``ld_alpha`` the tokens of an answer beyond the length of the other one count so much.
    """

    def logps_of(answers: list[TokenIds]) -> np.ndarray:
        return shared_logprobs(
            model, pairs.prompts * 2, answers, batch_size=batch_size, autocast=autocast
        )

    logps = logps_of(pairs.chosen + pairs.rejected)
    if ld_alpha is not None:
        shared = [min(map(len, both)) for both in zip(pairs.chosen, pairs.rejected, strict=True)]
        answers = zip(pairs.chosen + pairs.rejected, shared * 2, strict=True)
        common = logps_of([answer[:length] for answer, length in answers])
        logps = common + ld_alpha * (logps - common)
    chosen, rejected = np.split(logps, 2)
    return pa.table({"ref_chosen_logps": chosen, "ref_rejected_logps": rejected})
