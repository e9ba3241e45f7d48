"""What all trainings have in common before the first step.

Imports no machine-learning library at the top.
"""

from __future__ import annotations

import math
import os
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from prefloop.training.config import Lora, Optimisation, TrainConfig
from prefloop.training.errors import TrainingError


def has_gpu() -> bool:
    """Whether training runs on a GPU."""
    import torch

    return bool(torch.cuda.is_available())


def uses_bf16(config: Optimisation) -> bool:
    """Whether the forward pass runs under bf16 autocast."""
    if config.precision != "auto":
        return config.precision == "bf16"
    import torch

    return bool(torch.cuda.is_available() and torch.cuda.is_bf16_supported())


def processes() -> int:
    """How many processes this training runs in."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_sharded() -> bool:
    """Whether the weights will lie on several devices (FSDP, DeepSpeed)."""
    return any(
        os.environ.get(f"ACCELERATE_USE_{name}", "").lower() == "true"
        for name in ("FSDP", "DEEPSPEED")
    )


def optimiser_steps(examples: int, config: Optimisation) -> int:
    """Optimiser steps on ``examples``, counted as the trainer does."""
    batches = math.ceil(examples / (config.batch_size * processes()))
    return math.ceil(math.ceil(batches / config.gradient_accumulation) * config.epochs)


def shared_arguments(
    config: Optimisation, *, checkpoints: Path, steps: int, seed: int
) -> dict[str, Any]:
    """The arguments of transformers' ``TrainingArguments`` that every method is given."""
    gpu = has_gpu()
    return {
        **_optimizer(config, gpu=gpu),
        **_kernels(config, gpu=gpu),
        "output_dir": str(checkpoints),
        "learning_rate": config.learning_rate,
        "lr_scheduler_type": config.lr_scheduler,
        # Below 1 it is a share of the steps. The first step of a warm-up has a rate of 0, which
        # must not be the only one.
        "warmup_steps": config.warmup_ratio if steps > 1 else 0,
        "weight_decay": config.weight_decay,
        "max_grad_norm": config.max_grad_norm,
        "num_train_epochs": config.epochs,
        "per_device_train_batch_size": config.batch_size,
        "gradient_accumulation_steps": config.gradient_accumulation,
        "gradient_checkpointing": config.gradient_checkpointing,
        "bf16": uses_bf16(config),
        "use_cpu": not gpu,
        "seed": seed,
        "data_seed": seed,
        # The trainer would also save at the end; a short training needs no checkpoint at all.
        "save_strategy": "steps" if steps > config.save_steps else "no",
        "save_steps": config.save_steps,
        "save_total_limit": 2,  # one complete while the next is being written
        "logging_steps": 1,
        "logging_nan_inf_filter": False,  # it would hide the NaN that we stop at
        "report_to": "none",
        "disable_tqdm": True,
        "dataloader_pin_memory": gpu,
    }


def _optimizer(config: Optimisation, *, gpu: bool) -> dict[str, Any]:
    """Raises ``TrainingError`` where the optimiser cannot be had here."""
    name = config.optimizer
    if name == "adamw":
        return {}
    if find_spec("bitsandbytes") is None:
        raise TrainingError(
            f"optimizer {name} needs bitsandbytes: pip install 'prefloop[qlora]', or leave it out"
        )
    if name.startswith("paged") and not gpu:
        raise TrainingError(
            f"optimizer {name} moves its state from and to a GPU, and there is none here: use "
            "adamw_8bit or adamw"
        )
    return {"optim": "paged_adamw_32bit" if name == "paged_adamw" else name}


def _kernels(config: Optimisation, *, gpu: bool) -> dict[str, Any]:
    """Raises ``TrainingError`` where Liger's kernels are asked for and cannot be had here."""
    if not (isinstance(config, TrainConfig) and config.liger):
        return {}
    if find_spec("liger_kernel") is None:
        raise TrainingError(
            "liger needs the kernels: pip install 'prefloop[liger]', or leave liger out"
        )
    if not gpu:
        raise TrainingError("liger is for GPUs, and there is none here: leave liger out")
    return {"use_liger_kernel": True}


def on_one_gpu(arguments: Any) -> Any:
    """One process trains on one GPU; the others are the engines'."""
    if arguments.n_gpu > 1:
        arguments._n_gpu = 1
    return arguments


def disables_dropout(config: Optimisation) -> bool:
    """Whether TRL may switch off every dropout: not an adapter's own, where it was asked for."""
    return not (config.lora and config.lora.dropout)


def peft_config(lora: Lora, task: str) -> Any:
    """``lora`` as peft's config; ``task`` is peft's name of the task."""
    from peft import LoraConfig

    modules = lora.target_modules
    return LoraConfig(
        task_type=task,
        r=lora.r,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=list(modules) if isinstance(modules, tuple) else modules,
    )


def environment(config: Optimisation) -> dict[str, Any]:
    """What besides data and config decides the weights: precision, device, versions."""
    import torch
    import transformers
    import trl

    return {
        "precision": "bf16" if uses_bf16(config) else "float32",
        "device": "cuda" if has_gpu() else "cpu",
        "versions": {
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "trl": trl.__version__,
        },
    }


def quiet_trainer(trainer: Any) -> Any:
    """``trainer`` without the callback that prints every log, and without TRL's copy of an adapter
    that is trained on: the reference's log-probabilities come from its own folder. The names in an
    adapter's config are in one order: peft keeps them in sets, which each process orders in its own
    way, and what is written there is part of the policy's revision."""
    from transformers import PrinterCallback

    trainer.remove_callback(PrinterCallback)
    adapters = getattr(trainer.model, "peft_config", {})
    if "ref" in adapters:
        trainer.model.delete_adapter("ref")
    for config in adapters.values():
        for name, value in vars(config).items():
            if isinstance(value, set):
                setattr(config, name, sorted(value))
    return trainer


def dataset_of(table: Any, fingerprint: str) -> Any:
    """An Arrow table as a ``datasets.Dataset``, without a copy on disk."""
    from datasets import Dataset
    from datasets.table import InMemoryTable

    return Dataset(InMemoryTable(table), fingerprint=fingerprint)
