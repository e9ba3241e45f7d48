"""DPO on pairs that are sampled and labelled while it trains (Guo et al. 2024, arXiv 2402.04792).

A round is cut into legs of ``online_steps`` optimiser steps. Before each, the policy as it is
answers the leg's prompts and the answers are labelled; the leg's pairs are spread evenly over its
forward passes, so that a leg is always as many steps long, however many pairs were kept. With
``online_steps: 1`` every step is on-policy. For what else holds, see
``prefloop.training.session.fit``.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from prefloop.data.hashing import json_hash
from prefloop.training.config import TrainConfig
from prefloop.training.inputs.pairs import Pairs, read_pairs
from prefloop.training.methods.dpo import dpo_arguments, no_reference, reference_logps
from prefloop.training.policy.checkpoints import context_length, load_tokenizer
from prefloop.training.session.fit import (
    OnStep,
    OpenPolicy,
    TrainResult,
    dataset_of,
    fit,
    load_reference,
    open_policy,
    settings_of,
)
from prefloop.training.session.on_policy import Prompts, Triples, Weights
from prefloop.training.session.reference import append_columns
from prefloop.training.session.setup import on_one_gpu

logger = logging.getLogger(__name__)


def train_online(
    *,
    policy: Path,
    reference: Path,
    prompts: Prompts,
    triples: Triples,
    out: Path,
    config: TrainConfig,
    seed: int,
    on_step: OnStep | None = None,
    verbose: bool = False,
) -> TrainResult:
    """Train the policy in ``policy`` on what it answers to ``prompts`` meanwhile.

    ``triples`` is called once for each leg, in their order (again for legs that a killed attempt
    had begun; it must then give the same). Else as ``prefloop.training.methods.dpo.train_dpo``.
    """
    prompts.require_leg(
        "one leg of online training (online_steps x batch_size x gradient_accumulation)"
    )
    tokenizer = load_tokenizer(policy)
    max_length = min(config.max_length, context_length(policy))
    settings = settings_of(policy, reference, config, seed, max_length)
    fingerprint = json_hash({"prompts": prompts.about(), **settings})
    legs = OnlineChunks(reference, triples, tokenizer, config, max_length)

    def build(checkpoints: Path, callbacks: list[Any]) -> Any:
        from transformers import set_seed

        from prefloop.training.trainers.online_trainer import OnlineTrainer, one_number

        passes = prompts.legs * legs.passes
        opened = open_policy(policy, config)
        legs.opened = opened
        legs.weights = Weights(policy, checkpoints / "weights")
        arguments = dpo_arguments(config, passes * config.batch_size, checkpoints, seed, opened)
        arguments.per_device_train_batch_size = 1  # the number of a forward pass
        arguments.train_sampling_strategy = "sequential"
        set_seed(seed)
        trainer = OnlineTrainer(
            model=opened.model,
            ref_model=None,
            args=on_one_gpu(arguments),
            train_dataset=dataset_of(_numbers(passes), fingerprint),
            processing_class=tokenizer,
            data_collator=one_number,
            peft_config=opened.peft,
            callbacks=callbacks,
        )
        trainer.settings = config
        trainer.legs = legs
        legs.weights.trainer = trainer
        return trainer

    return fit(
        policy=policy, out=out, config=config, settings=settings, fingerprint=fingerprint,
        examples=len(prompts.messages), dropped_overlong=0, build=build, on_step=on_step,
        verbose=verbose,
    )  # fmt: skip


def _numbers(passes: int) -> pa.Table:
    """One row for each forward pass; the other columns are what DPOTrainer looks for."""
    nothing = pa.array([[0]] * passes, pa.large_list(pa.int32()))
    columns: dict[str, Any] = {"number": np.arange(passes)}
    for name in ("prompt_ids", "chosen_ids", "rejected_ids"):
        columns[name] = nothing
    for name in ("ref_chosen_logps", "ref_rejected_logps"):
        columns[name] = np.zeros(passes)
    return pa.table(columns)


class OnlineChunks:
    """The forward passes of an online training: pairs of the leg that is trained on now."""

    opened: OpenPolicy
    weights: Weights

    def __init__(
        self,
        reference: Path,
        triples: Triples,
        tokenizer: Any,
        config: TrainConfig,
        max_length: int,
    ) -> None:
        self.passes = config.online_steps * config.gradient_accumulation
        """Forward passes a leg."""
        self._reference = reference
        self._triples, self._tokenizer = triples, tokenizer
        self._config, self._max_length = config, max_length
        self._live: Any = None
        self._leg = -1
        self._rows: list[dict[str, Any]] = []

    def rows(self, number: int) -> list[dict[str, Any]]:
        """The pairs of forward pass ``number``, as the collator of pairs takes them; none where the
        leg kept none."""
        leg, part = divmod(number, self.passes)
        if leg != self._leg:
            self._rows, self._leg = self._make(leg), leg
        if not self._rows:
            return []
        shares = np.array_split(np.arange(len(self._rows)), self.passes)
        own = shares[part]
        # Fewer pairs than passes: a pair is then trained on more than once.
        picked = own if len(own) else [part % len(self._rows)]
        return [self._rows[row] for row in picked]

    def _make(self, leg: int) -> list[dict[str, Any]]:
        pairs = self._read(self._triples(leg, self.weights.now))
        if pairs is None:
            logger.warning("leg %d of the online training kept no pair to train on", leg)
            return []
        if pairs.dropped_overlong:
            logger.warning("leg %d: %d pairs are too long", leg, pairs.dropped_overlong)
        if self._config.uses_reference:
            columns = reference_logps(
                pairs, self._reference_model(), batch_size=2 * self._config.batch_size,
                autocast=self.opened.autocast, ld_alpha=self._config.ld_alpha,
            )  # fmt: skip
        else:
            columns = no_reference(len(pairs))
        return list(append_columns(pairs.table(), columns).to_pylist())

    def _read(self, shards: Sequence[Path]) -> Pairs | None:
        if not shards:
            return None
        return read_pairs(
            shards, self._tokenizer, max_length=self._max_length, max_pairs=None, seed=0
        )

    def _reference_model(self) -> Any:
        if self._live is None:
            self._live = load_reference(self._reference, self.opened)
        return self._live
