"""One round of preference training: triples in, a new policy folder out.

Invariants:

* The folder ``out`` is complete if it exists: it is written beside and renamed.
* Same triples, policy, reference, config and seed give the same weights (bit for bit on a CPU
  with the same number of threads), whether or not the round was interrupted and resumed.
* No pair is cut to fit: it is trained on whole, or dropped and counted.

With LoRA, the adapter of the previous round is trained on, and its base stays the policy that
the first round started from: an adapter never stacks on an adapter, an engine that serves the
base takes each round's adapter as it is, and the reference may be any policy, because its
log-probabilities are computed from its own folder.
"""

from __future__ import annotations

import json
import math
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from data.hashing import folder_revision, json_hash
from training.checkpoints import (
    adapter_settings,
    base_of,
    copy_tokenizer,
    is_adapter,
    load_model,
    load_tokenizer,
)
from training.config import OWN_LOSSES, Lora, TrainConfig
from training.errors import TrainingError
from training.guards import GuardWatch
from training.logprobs import sequence_logprobs
from training.pairs import Pairs, read_pairs
from training.tokens import TokenIds

if TYPE_CHECKING:
    import torch

RECORD = "training.jsonl"
"""File in a policy folder: its ``TrainResult``, then one line per optimiser step."""
SNAPSHOTS = "put-aside"
"""Folder beside the checkpoints for weights that were healthy."""


@dataclass(frozen=True)
class TrainResult:
    """What a round of training did.

    ``history``: one record per optimiser step under TRL's names (``loss``, ``rewards/margins``,
    ``rewards/accuracies``, ``logps/chosen``, ``grad_norm``, ...) with ``step`` from 1 to
    ``total_steps``.
    ``base``: the full checkpoint that ``policy_path`` is an adapter for; ``None`` for a whole
    model. ``settings``: all that a round needs to be repeated, batch size, learning rate,
    reference and fresh or accumulated data among it. ``seconds`` is the whole call (of the last
    attempt, where it was resumed), ``step_seconds`` the optimiser steps alone.
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
    """The guard that stopped the training (``training.guards.Trip``) and ``restored_step``, the
    step whose weights were saved (0: those that training began with); null where none did."""


def train_dpo(
    *,
    policy: Path,
    reference: Path,
    triples: Sequence[Path],
    out: Path,
    config: TrainConfig,
    seed: int,
    replay: Sequence[Path] = (),
    on_step: Callable[[dict[str, float]], None] | None = None,
    verbose: bool = False,
) -> TrainResult:
    """Train the policy in ``policy`` on ``triples`` and save the new one as ``out``.

    ``policy`` and ``reference`` are checkpoint or adapter folders, ``triples`` Parquet shards of
    ``schemas.TRIPLE``, ``replay`` those of earlier rounds to draw some of. ``on_step`` gets each
    step's record; an exception it raises stops the training and passes through, and nothing is
    saved. Checkpoints are kept in
    ``out.parent/"checkpoints"`` while training runs, and an interrupted call with the same
    arguments goes on from the last one. An ``out`` that these arguments made already is not made
    again: its recorded result is returned.

    Where a guard of ``config`` goes off, training stops, and what is saved are the last weights
    that were put aside while all was well.

    Raises ``TrainingError`` if there is nothing to train on, a model folder is unusable, the
    loss becomes NaN, or ``out`` holds something else.
    """
    started = time.monotonic()
    tokenizer = load_tokenizer(policy)
    max_length = min(config.max_length, _context_length(policy))
    pairs = read_pairs(
        triples, tokenizer, max_length=max_length, max_pairs=config.max_pairs, seed=seed,
        replay=replay, replay_share=config.replay_share, by_margin=config.order == "margin",
    )  # fmt: skip
    settings = _settings(policy, reference, config, seed, max_length)
    fingerprint = json_hash({"pairs": pairs.digest(), **settings})
    if out.exists():
        return _recorded(out, fingerprint)

    from training.trainer import last_put_aside, quiet

    checkpoints = out.parent / "checkpoints"
    guards = GuardWatch(config.guards, beta=config.beta)
    with quiet(verbose):
        trainer, resume_from = _trainer(
            policy=policy,
            reference=reference,
            pairs=pairs,
            tokenizer=tokenizer,
            config=config,
            seed=seed,
            checkpoints=checkpoints,
            fingerprint=fingerprint,
            on_step=on_step,
            guards=guards,
        )
        stepping = time.monotonic()
        trainer.train(resume_from_checkpoint=resume_from)
        step_seconds = time.monotonic() - stepping
        result = TrainResult(
            policy_path=out,
            base=base_of(policy).resolve() if config.lora else None,
            steps=trainer.state.global_step,
            examples=len(pairs),
            dropped_overlong=pairs.dropped_overlong,
            seconds=time.monotonic() - started,
            step_seconds=step_seconds,
            settings=settings,
            history=_history(trainer),
        )
        restored = None
        if guards.stopped:
            restored = last_put_aside(checkpoints / SNAPSHOTS) or policy
            step = int(restored.name) if restored != policy else 0
            result = replace(result, guard={**guards.stopped.as_dict(), "restored_step": step})
        _save(trainer, policy, result, fingerprint, restored)
    shutil.rmtree(checkpoints, ignore_errors=True)
    return result


def _trainer(
    *,
    policy: Path,
    reference: Path,
    pairs: Pairs,
    tokenizer: Any,
    config: TrainConfig,
    seed: int,
    checkpoints: Path,
    fingerprint: str,
    on_step: Callable[[dict[str, float]], None] | None,
    guards: GuardWatch,
) -> tuple[Any, str | None]:
    """The trainer, ready to run, and the checkpoint to resume from if there is one."""
    import torch
    from datasets import Dataset
    from datasets.table import InMemoryTable
    from transformers import PrinterCallback, set_seed
    from trl import DPOConfig

    from training.trainer import PairCollator, PairTrainer, Watch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    bf16 = _bf16(config)
    # Whole models train on float32 weights, also under bf16 autocast: an update at a DPO learning
    # rate is below bf16's resolution. Under an adapter the frozen base may be bf16.
    dtype = torch.bfloat16 if bf16 and config.lora else torch.float32
    continued = bool(config.lora) and is_adapter(policy)
    if config.lora and continued:
        _check_same_adapter(policy, config.lora)
    model = load_model(policy, dtype=dtype, device=device, trainable_adapter=continued)
    live_reference = None
    table = pairs.table()
    if not config.uses_reference:
        nothing = pa.array(np.zeros(len(pairs)))
        table = table.append_column("ref_chosen_logps", nothing)
        table = table.append_column("ref_rejected_logps", nothing)
    elif config.precompute_reference_logprobs:
        same = policy.resolve() == reference.resolve()
        table = _with_reference(
            table,
            pairs,
            model if same else load_model(reference, dtype=dtype, device=device),
            batch_size=2 * config.batch_size,  # two sequences a pair, as in training
            autocast=torch.bfloat16 if bf16 else None,
            ld_alpha=config.ld_alpha,
        )
    else:
        live_reference = load_model(reference, dtype=dtype, device=device)

    steps = _steps(len(pairs), config)
    weights = config.loss_weights or (1.0,) * len(config.losses)
    of_trl = {
        name: weight
        for name, weight in zip(config.losses, weights, strict=True)
        if name not in OWN_LOSSES
    }
    arguments = DPOConfig(
        output_dir=str(checkpoints),
        # With a loss of ours alone, TRL's counts for nothing.
        loss_type=list(of_trl) or ["sigmoid"],
        loss_weights=list(of_trl.values()) or [0.0],
        ld_alpha=config.ld_alpha,
        f_divergence_type=config.divergence,
        f_alpha_divergence_coef=config.divergence_alpha,
        beta=config.beta,
        label_smoothing=config.label_smoothing,
        learning_rate=config.learning_rate,
        lr_scheduler_type=config.lr_scheduler,
        warmup_steps=config.warmup_ratio,  # below 1 it is a share of the steps
        weight_decay=config.weight_decay,
        max_grad_norm=config.max_grad_norm,
        num_train_epochs=config.epochs,
        train_sampling_strategy="sequential" if config.order == "margin" else "random",
        per_device_train_batch_size=config.batch_size,
        gradient_accumulation_steps=config.gradient_accumulation,
        gradient_checkpointing=config.gradient_checkpointing,
        max_length=None,  # read_pairs has seen to it
        precompute_ref_log_probs=live_reference is None,
        # TRL switches off every dropout, an adapter's own too; leave it on where it was asked for.
        disable_dropout=not (config.lora and config.lora.dropout),
        bf16=bf16,
        # TRL trains without a cache in any case; this is what the saved config.json will say, and
        # false, the trainer's default, would make the new policy slow to sample from.
        use_cache=model.config.use_cache,
        use_cpu=device == "cpu",
        seed=seed,
        data_seed=seed,
        # The trainer would also save at the end; a short round needs no checkpoint at all.
        save_strategy="steps" if steps > config.save_steps else "no",
        save_steps=config.save_steps,
        save_total_limit=2,  # one complete while the next is being written
        logging_steps=1,
        logging_nan_inf_filter=False,  # it would hide the NaN that we stop at
        report_to="none",
        disable_tqdm=True,
        dataloader_pin_memory=device == "cuda",
    )
    if arguments.n_gpu > 1:
        arguments._n_gpu = 1  # one process trains on one GPU; the others are the engines'
    set_seed(seed)
    trainer = PairTrainer(
        model=model,
        ref_model=live_reference,
        args=arguments,
        train_dataset=Dataset(InMemoryTable(table), fingerprint=fingerprint),
        processing_class=tokenizer,
        data_collator=PairCollator(pad_token_id=tokenizer.pad_token_id),
        peft_config=_peft_config(config.lora) if config.lora and not continued else None,
        callbacks=[Watch(fingerprint, on_step, guards=guards, snapshots=checkpoints / SNAPSHOTS)],
    )
    trainer.settings = config
    trainer.lengths = pairs.lengths()
    trainer.remove_callback(PrinterCallback)
    if continued and live_reference is None:
        trainer.model.delete_adapter("ref")  # TRL's copy of the adapter: ours is precomputed
    return trainer, resumable(checkpoints, fingerprint)


def _with_reference(
    table: pa.Table,
    pairs: Pairs,
    model: Any,
    *,
    batch_size: int,
    autocast: torch.dtype | None,
    ld_alpha: float | None,
) -> pa.Table:
    """``table`` with the reference's log-probabilities under the names TRL's collator reads.

    With ``ld_alpha`` the tokens of an answer beyond the length of the other one count so much.
    """

    def logps_of(answers: list[TokenIds]) -> np.ndarray:
        return sequence_logprobs(
            model, pairs.prompts * 2, answers, batch_size=batch_size, autocast=autocast
        )

    logps = logps_of(pairs.chosen + pairs.rejected)
    if ld_alpha is not None:
        shared = [min(map(len, both)) for both in zip(pairs.chosen, pairs.rejected, strict=True)]
        answers = zip(pairs.chosen + pairs.rejected, shared * 2, strict=True)
        common = logps_of([answer[:length] for answer, length in answers])
        logps = common + ld_alpha * (logps - common)
    chosen, rejected = np.split(logps, 2)
    return table.append_column("ref_chosen_logps", pa.array(chosen)).append_column(
        "ref_rejected_logps", pa.array(rejected)
    )


def _bf16(config: TrainConfig) -> bool:
    if config.precision != "auto":
        return config.precision == "bf16"
    import torch

    return bool(torch.cuda.is_available() and torch.cuda.is_bf16_supported())


def _steps(pairs: int, config: TrainConfig) -> int:
    """Optimiser steps, counted as the trainer does."""
    batches = math.ceil(pairs / config.batch_size)
    return math.ceil(math.ceil(batches / config.gradient_accumulation) * config.epochs)


def _context_length(policy: Path) -> int:
    """Positions the model was made for; a longer sequence would be noise to it."""
    settings = json.loads((base_of(policy) / "config.json").read_text(encoding="utf-8"))
    return int(settings.get("max_position_embeddings") or 2**31)


def _peft_config(lora: Lora) -> Any:
    from peft import LoraConfig

    modules = lora.target_modules
    return LoraConfig(
        task_type="CAUSAL_LM",
        r=lora.r,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=list(modules) if isinstance(modules, tuple) else modules,
    )


def _check_same_adapter(policy: Path, lora: Lora) -> None:
    has = adapter_settings(policy)
    if (has["r"], has["lora_alpha"]) != (lora.r, lora.alpha):
        raise TrainingError(
            f"the adapter {policy} has r={has['r']}, alpha={has['lora_alpha']}, the config "
            f"r={lora.r}, alpha={lora.alpha}: set train.lora to the adapter's values"
        )


def _settings(
    policy: Path, reference: Path, config: TrainConfig, seed: int, max_length: int
) -> dict[str, Any]:
    """Everything that decides the new weights except the triples: the round's record."""
    import torch
    import transformers
    import trl

    return config.model_dump(mode="json") | {
        "max_length": max_length,
        "precision": "bf16" if _bf16(config) else "float32",
        "device": "cuda" if torch.cuda.is_available() else "cpu",
        "policy_revision": folder_revision(policy),
        "reference_revision": folder_revision(reference),
        "seed": seed,
        "versions": {
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "trl": trl.__version__,
        },
    }


def resumable(checkpoints: Path, fingerprint: str) -> str | None:
    """The last complete checkpoint of this very training; all others are removed."""
    from training.trainer import MARKER

    found: dict[int, Path] = {}
    for folder in checkpoints.glob("checkpoint-*"):
        marker = folder / MARKER
        if marker.is_file() and marker.read_text(encoding="utf-8") == fingerprint:
            found[int(folder.name.rpartition("-")[2])] = folder
        else:
            shutil.rmtree(folder)
    return str(found[max(found)]) if found else None


def _history(trainer: Any) -> list[dict[str, float]]:
    from training.trainer import step_record

    state = trainer.state
    return [step_record(log, state.max_steps) for log in state.log_history if "loss" in log]


def _save(
    trainer: Any, policy: Path, result: TrainResult, fingerprint: str, weights: Path | None
) -> None:
    """Write the policy folder under a temporary name and rename it when it is complete.

    ``weights``: a folder to take them from instead of from the trainer.
    """
    out = result.policy_path
    partial = out.with_name(f".{out.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    if weights:
        shutil.copytree(weights, partial, ignore=shutil.ignore_patterns(RECORD))
    else:
        trainer.model.save_pretrained(partial)
    copy_tokenizer(policy, partial)
    record = asdict(replace(result, history=[]))
    record |= {
        "policy_path": str(out),
        "base": str(result.base) if result.base else None,
        "fingerprint": fingerprint,
    }
    # Not a .json file: timings must not enter the revision of the policy (folder_revision).
    lines = [json.dumps(line) for line in (record, *result.history)]
    (partial / RECORD).write_text("\n".join(lines) + "\n", encoding="utf-8")
    partial.rename(out)


def _recorded(out: Path, fingerprint: str) -> TrainResult:
    """The result that ``out`` was made with."""
    record_file = out / RECORD
    lines = record_file.read_text(encoding="utf-8").splitlines() if record_file.is_file() else []
    record = json.loads(lines[0]) if lines else {}
    if record.pop("fingerprint", None) != fingerprint:
        raise TrainingError(
            f"{out} holds a policy made from other triples or settings: move it away, or train "
            "into another folder"
        )
    record |= {
        "policy_path": out,
        "base": Path(record["base"]) if record["base"] else None,
        "history": [json.loads(line) for line in lines[1:]],
    }
    return TrainResult(**record)
