"""One training of a policy, whatever the method: begun or resumed, watched, saved, recorded.

Invariants:

* The folder ``out`` is complete if it exists: it is written beside and renamed.
* Same data, policy, reference, config and seed give the same weights (bit for bit on a CPU with
  the same number of threads), whether or not the training was interrupted and resumed.

With LoRA, the adapter of the previous round is trained on, and its base stays the policy that
the first round started from: an adapter never stacks on an adapter, an engine that serves the
base takes each round's adapter as it is, and the reference may be any policy, because its
log-probabilities are computed from its own folder.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prefloop.data.hashing import content_id, folder_revision
from prefloop.training.config import Lora, TrainConfig
from prefloop.training.errors import TrainingError
from prefloop.training.policy.checkpoints import (
    adapter_settings,
    base_of,
    copy_tokenizer,
    is_adapter,
    load_model,
)
from prefloop.training.session.guards import GuardWatch
from prefloop.training.session.records import RECORD, read_record, write_record
from prefloop.training.session.setup import (
    environment,
    has_gpu,
    is_sharded,
    peft_config,
    uses_bf16,
)

if TYPE_CHECKING:
    import torch

OnStep = Callable[[dict[str, float]], None]
"""Gets the record of each optimiser step; what it raises stops the training."""
Build = Callable[[Path, list[Any]], Any]
"""Makes the trainer, given the folder of its checkpoints and the callbacks it must have."""


@dataclass(frozen=True)
class TrainResult:
    """What a training did.

    ``history``: one record per optimiser step under TRL's names (``loss``, ``rewards/margins``,
    ``rewards/accuracies``, ``logps/chosen``, ``grad_norm``, ...) with ``step`` from 1 to
    ``total_steps``.
    ``base``: the full checkpoint that ``policy_path`` is an adapter for; ``None`` for a whole
    model. ``settings``: all that a round needs to be repeated, batch size, learning rate,
    reference and fresh or accumulated data among it. ``examples`` are pairs, answers (``kto``,
    ``sft``) or prompts (where answers are sampled meanwhile). ``seconds`` is the whole call (of
    the last attempt, where it was resumed), ``step_seconds`` the optimiser steps alone.
    """

    policy_path: Path
    base: Path | None
    steps: int
    examples: int
    dropped_overlong: int
    seconds: float
    step_seconds: float
    settings: dict[str, Any]
    history: list[dict[str, float]]
    guard: dict[str, Any] | None = None
    """The guard that stopped the training (``prefloop.training.session.guards.TrainingAlarm``) and
    ``restored_step``, the step whose weights were saved (0: those that training began with); null
    where none did."""


def fit(
    *,
    policy: Path,
    out: Path,
    config: TrainConfig,
    settings: dict[str, Any],
    fingerprint: str,
    examples: int,
    dropped_overlong: int,
    build: Build,
    on_step: OnStep | None,
    verbose: bool,
) -> TrainResult:
    """Train what ``build`` makes, from its last checkpoint if there is one, and save it as ``out``.

    ``fingerprint`` is a hash of everything that decides the new weights. An ``out`` that was made
    from the same is not made again: its recorded result is returned. Checkpoints are kept in
    ``out.parent/"checkpoints"`` while training runs. Where a guard of ``config`` goes off, training
    stops, and what is saved are the last weights that were put aside while all was well.

    Raises ``TrainingError`` where the loss becomes NaN or ``out`` holds something else.
    """
    if out.exists():
        return recorded(out, fingerprint)
    from prefloop.training.session.watch import (
        SNAPSHOTS,
        Watch,
        last_snapshot,
        quiet,
        resumable,
        step_record,
    )

    started = time.monotonic()
    checkpoints = out.parent / "checkpoints"
    guards = GuardWatch(config.guards, beta=config.beta)
    watch = Watch(fingerprint, on_step, guards=guards, snapshots=checkpoints / SNAPSHOTS)
    with quiet(verbose):
        trainer = quiet_trainer(build(checkpoints, [watch]))
        watch.trainer = trainer
        stepping = time.monotonic()
        trainer.train(
            resume_from_checkpoint=resumable(
                checkpoints, fingerprint, tidy=trainer.is_world_process_zero()
            )
        )
        state = trainer.state
        result = TrainResult(
            policy_path=out,
            base=base_of(policy).resolve() if config.lora else None,
            steps=state.global_step,
            examples=examples,
            dropped_overlong=dropped_overlong,
            seconds=time.monotonic() - started,
            step_seconds=time.monotonic() - stepping,
            settings=settings,
            history=[
                step_record(log, state.max_steps) for log in state.log_history if "loss" in log
            ],
        )
        restored = None
        if guards.stopped:
            restored = last_snapshot(checkpoints / SNAPSHOTS) or policy
            step = int(restored.name) if restored != policy else 0
            result = replace(result, guard={**guards.stopped.as_dict(), "restored_step": step})
        _save(trainer, policy, result, fingerprint, restored)
    if trainer.is_world_process_zero():
        shutil.rmtree(checkpoints, ignore_errors=True)
    return result


def _save(
    trainer: Any, policy: Path, result: TrainResult, fingerprint: str, weights: Path | None
) -> None:
    """Write the policy folder under a temporary name and rename it when it is complete.

    ``weights``: a folder to take them from instead of from the trainer.
    """
    from prefloop.training.session.watch import save_weights

    out = result.policy_path
    partial = out.with_name(f".{out.name}.partial")
    main = trainer.is_world_process_zero()
    if main:
        shutil.rmtree(partial, ignore_errors=True)
    if not weights:
        save_weights(trainer, partial)
    elif main:
        shutil.copytree(weights, partial, ignore=shutil.ignore_patterns(RECORD))
    if main:
        copy_tokenizer(policy, partial)
        record = asdict(replace(result, history=[]))
        record |= {"policy_path": str(out), "base": str(result.base) if result.base else None}
        write_record(partial, fingerprint, record, result.history)
        partial.rename(out)
    trainer.accelerator.wait_for_everyone()


def recorded(out: Path, fingerprint: str) -> TrainResult:
    """The result that ``out`` was made with."""
    record, history = read_record(out, fingerprint)
    base = Path(record["base"]) if record["base"] else None
    return TrainResult(**record | {"policy_path": out, "base": base, "history": history})


def settings_of(
    policy: Path, reference: Path | None, config: TrainConfig, seed: int, max_length: int
) -> dict[str, Any]:
    """Everything that decides the new weights except the data: the round's record."""
    launched = config.accelerate and content_id(config.accelerate.read_text(encoding="utf-8"))
    return (
        config.model_dump(mode="json")
        | environment(config)
        | {
            "accelerate": launched,
            "max_length": max_length,
            "policy_revision": folder_revision(policy),
            "reference_revision": folder_revision(reference) if reference else None,
            "seed": seed,
        }
    )


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
    begun = peft_config(config.lora, "CAUSAL_LM") if config.lora and not continued else None
    autocast = torch.bfloat16 if bf16 else None
    return OpenPolicy(model, begun, dtype, autocast, device, quantize, whole=not is_sharded())


def load_reference(reference: Path, opened: OpenPolicy) -> Any:
    """The reference policy, rounded as the policy that is compared with it."""
    return load_model(reference, dtype=opened.dtype, device=opened.device, quantize=opened.quantize)


def _check_same_adapter(policy: Path, lora: Lora) -> None:
    has = adapter_settings(policy)
    if (has["r"], has["lora_alpha"]) != (lora.r, lora.alpha):
        raise TrainingError(
            f"the adapter {policy} has r={has['r']}, alpha={has['lora_alpha']}, the config "
            f"r={lora.r}, alpha={lora.alpha}: set train.lora to the adapter's values"
        )


def quiet_trainer(trainer: Any) -> Any:
    """``trainer`` without the callback that prints every log, and without TRL's copy of an adapter
    that is trained on: the reference's log-probabilities come from its own folder."""
    from transformers import PrinterCallback

    trainer.remove_callback(PrinterCallback)
    if "ref" in getattr(trainer.model, "peft_config", {}):
        trainer.model.delete_adapter("ref")
    return trainer


def dataset_of(table: Any, fingerprint: str) -> Any:
    """An Arrow table as a ``datasets.Dataset``, without a copy on disk."""
    from datasets import Dataset
    from datasets.table import InMemoryTable

    return Dataset(InMemoryTable(table), fingerprint=fingerprint)
