"""The policy that is trained and the reference that it is compared with, in memory.

With LoRA, the adapter of the previous round is trained on, and its base stays the policy that
the first round started from: an adapter never stacks on an adapter, an engine that serves the
base takes each round's adapter as it is, and the reference may be any policy, because its
log-probabilities are computed from its own folder.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prefloop.training.config import Lora, TrainConfig
from prefloop.training.errors import TrainingError
from prefloop.training.policy.checkpoints import adapter_settings, is_adapter, load_model
from prefloop.training.policy.rotary import rotary_limit
from prefloop.training.session.setup import has_gpu, is_sharded, peft_config, uses_bf16

if TYPE_CHECKING:
    import torch


logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class OpenPolicy:
    """A policy loaded for training."""

    model: Any
    peft: Any | None
    """The adapter to begin; null for whole weights and where an adapter is trained on."""
    dtype: torch.dtype
    autocast: torch.dtype | None
    device: str
    quantize: str | None
    """How the base is quantised."""
    whole: bool
    """Whether its weights are all here and as they are on disk."""


def open_policy(policy: Path, config: TrainConfig) -> OpenPolicy:
    """Load ``policy`` as ``config`` trains it. Raises ``TrainingError`` where that cannot be."""
    import torch

    device = "cuda" if has_gpu() else "cpu"
    bf16 = uses_bf16(config)
    # Whole models train on float32 weights, also under bf16 autocast: an update at a DPO learning
    # rate is below bf16's resolution. Under an adapter the frozen base may be bf16.
    dtype = torch.bfloat16 if bf16 and config.lora else torch.float32
    continued = bool(config.lora) and is_adapter(policy)
    if config.lora and continued:
        _check_same_adapter(policy, config.lora)
    quantize = config.lora.quantize if config.lora else None
    model = load_model(
        policy, dtype=dtype, device="cpu" if is_sharded() else device,
        trainable_adapter=continued, quantize=quantize,
    )  # fmt: skip
    if not config.lora:
        _check_trainable(policy, model)
    limit = rotary_limit(model)
    if limit is not None and config.max_length > limit:
        logger.warning(
            "%s reads sequences of more than %d tokens with another rotary embedding, and with "
            "them all others of their batch: set train.max_length to %d, or log-probabilities go "
            "by what is trained on together",
            policy,
            limit,
            limit,
        )
    begun = peft_config(config.lora, "CAUSAL_LM") if config.lora and not continued else None
    autocast = torch.bfloat16 if bf16 else None
    return OpenPolicy(model, begun, dtype, autocast, device, quantize, whole=not is_sharded())


def load_reference(reference: Path, opened: OpenPolicy) -> Any:
    """The reference policy, rounded as the policy that is compared with it."""
    return load_model(reference, dtype=opened.dtype, device=opened.device, quantize=opened.quantize)


def _check_trainable(policy: Path, model: Any) -> None:
    """Raise ``TrainingError`` where the weights of ``model`` are quantised."""
    kind = getattr(model.config, "quantization_config", None)
    if kind is not None:
        method = kind.get("quant_method") if isinstance(kind, dict) else kind.quant_method
        raise TrainingError(
            f"{policy}: its weights are quantised ({getattr(method, 'value', method)}), so they "
            "cannot be trained: give the model that they were made of (with lora.quantize: nf4 "
            "where memory is short), or set train.lora"
        )


def _check_same_adapter(policy: Path, lora: Lora) -> None:
    has = adapter_settings(policy)
    if (has["r"], has["lora_alpha"]) != (lora.r, lora.alpha):
        raise TrainingError(
            f"the adapter {policy} has r={has['r']}, alpha={has['lora_alpha']}, the config "
            f"r={lora.r}, alpha={lora.alpha}: set train.lora to the adapter's values"
        )
