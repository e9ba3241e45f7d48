"""Training of a reward model: triples in, a checkpoint that scores conversations out.

The model is Bradley and Terry's (1952): P(chosen preferred) = sigma(r_chosen - r_rejected), and
the loss of a pair is -log of it (Ouyang et al. 2022, arXiv 2203.02155, equation 1).

Invariants:

* The folder ``out`` is complete if it exists: it is written beside and renamed. It is a plain
  sequence-classification checkpoint, also after training with LoRA.
* What is trained on is what is later scored: token ids of both come from
  ``labelers.sequence_scores``.
* Same triples, base, config and seed give the same weights (bit for bit on a CPU with the same
  number of threads), whether or not the training was interrupted and resumed.
* No conversation is cut to fit: its pair is trained on whole, or dropped and counted.
"""

from __future__ import annotations

import json
import math
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from data.hashing import folder_revision, json_hash
from labelers.estimate import Estimate
from labelers.sequence_scores import SequenceScorer, context_length, padding_token
from training.checkpoints import base_of, copy_tokenizer, is_adapter, load_tokenizer
from training.config import Lora
from training.dpo import RECORD, resumable
from training.errors import TrainingError
from training.reward_config import RewardConfig
from training.reward_pairs import RewardPairs, prompts_in, read_reward_pairs
from training.winrate import win_rate

TRAINED_PROMPT = "trained_prompt"
"""Why a held-out pair was left out: the model was trained on its prompt."""
NOT_FINITE = "not_finite"
"""Why a held-out pair was left out: a score is no finite number."""


@dataclass(frozen=True)
class RewardResult:
    """What a training did.

    ``history``: one record per optimiser step under TRL's names (``loss``, ``accuracy``,
    ``margin``, ``mean_reward``, ``grad_norm``, ...) with ``step`` from 1 to ``total_steps``.
    ``dropped``: rows that were not trained on, by reason. ``settings``: all that is needed to
    repeat it. ``seconds`` is the whole call (of the last attempt, where it was resumed),
    ``step_seconds`` the optimiser steps alone.
    """

    model_path: Path
    steps: int
    examples: int
    dropped: dict[str, int]
    seconds: float
    step_seconds: float
    settings: dict[str, Any]
    history: list[dict[str, float]]


@dataclass(frozen=True)
class Heldout:
    """How often a reward model gives the chosen answer the higher score.

    ``accuracy`` has Wilson's interval (see ``training.winrate.win_rate``), with equal scores as
    half; null where no pair was left. ``dropped``: rows that do not count, by reason.
    """

    accuracy: Estimate | None
    dropped: dict[str, int]


def train_reward(
    *,
    base: Path,
    triples: Sequence[Path],
    out: Path,
    config: RewardConfig,
    seed: int,
    on_step: Callable[[dict[str, float]], None] | None = None,
    verbose: bool = False,
) -> RewardResult:
    """Train the model in ``base`` to score the chosen answers of ``triples`` higher; save it.

    ``base`` is the folder of a causal language model, which gets a head of one output drawn by
    ``seed``, or of a reward model, which keeps its own. ``triples`` are Parquet files (see
    ``training.reward_pairs``). ``on_step`` gets each step's record; an exception it raises stops
    the training and passes through, and nothing is saved. Checkpoints are kept beside ``out``
    while training runs, and an interrupted call with the same arguments goes on from the last
    one. An ``out`` that these arguments made already is not made again: its recorded result is
    returned.

    Raises ``TrainingError`` if there is nothing to train on, the base is unusable, the loss
    becomes NaN, or ``out`` holds something else.
    """
    started = time.monotonic()
    if is_adapter(base):
        raise TrainingError(
            f"{base} is a LoRA adapter: give its base, {base_of(base)}, or a merged checkpoint"
        )
    base_of(base)
    tokenizer = load_tokenizer(base)
    max_length = min(config.max_length, _context(base, tokenizer))
    tokenizer.model_max_length = 10**9  # read_reward_pairs counts what is too long; it would warn
    pairs = _training_pairs(triples, tokenizer, config, max_length, seed)
    settings = _settings(base, config, seed, max_length)
    fingerprint = json_hash({"pairs": pairs.digest(), **settings})
    if out.exists():
        return _recorded(out, fingerprint)

    from training.trainer import quiet, step_record

    checkpoints = out.with_name(f".{out.name}.checkpoints")
    with quiet(verbose):
        trainer = _trainer(base, pairs, tokenizer, config, seed, checkpoints, fingerprint, on_step)
        stepping = time.monotonic()
        trainer.train(resume_from_checkpoint=resumable(checkpoints, fingerprint))
        state = trainer.state
        result = RewardResult(
            model_path=out,
            steps=state.global_step,
            examples=len(pairs),
            dropped=pairs.dropped,
            seconds=time.monotonic() - started,
            step_seconds=time.monotonic() - stepping,
            settings=settings,
            history=[
                step_record(log, state.max_steps) for log in state.log_history if "loss" in log
            ],
        )
        _save(trainer.model, base, result, fingerprint)
    shutil.rmtree(checkpoints, ignore_errors=True)
    return result


def heldout_accuracy(
    model: Path,
    triples: Sequence[Path],
    *,
    trained_on: Sequence[Path] = (),
    batch_tokens: int = 16_384,
) -> Heldout:
    """How often the reward model in ``model`` prefers the chosen answer of ``triples``.

    Pairs on prompts that are in ``trained_on`` too do not count: the model has seen them. Raises
    ``LabelerError`` for a folder without a reward model and ``TrainingError`` for unusable files.
    """
    scorer = SequenceScorer(str(model), batch_tokens=batch_tokens)
    pairs = read_reward_pairs(triples, scorer.tokenizer, max_length=scorer.max_length)
    seen = prompts_in(trained_on)
    fresh = pairs.take([row for row, prompt in enumerate(pairs.prompts) if prompt not in seen])
    chosen, rejected = np.split(scorer.score(fresh.chosen + fresh.rejected), 2)
    finite = np.isfinite(chosen) & np.isfinite(rejected)
    left_out = {
        TRAINED_PROMPT: len(pairs) - len(fresh),
        NOT_FINITE: int((~finite).sum()),
    }
    dropped = pairs.dropped | {reason: number for reason, number in left_out.items() if number}
    if not finite.any():
        return Heldout(None, dropped)
    right = np.sign(chosen - rejected)[finite] / 2 + 0.5
    prompts = np.array(fresh.prompts)[finite]
    return Heldout(win_rate(right, clusters=prompts), dropped)


def _training_pairs(
    triples: Sequence[Path], tokenizer: Any, config: RewardConfig, max_length: int, seed: int
) -> RewardPairs:
    pairs = read_reward_pairs(
        triples, tokenizer, max_length=max_length, with_margin=config.use_margin
    )
    if not len(pairs):
        reasons = ", ".join(f"{number} {reason}" for reason, number in pairs.dropped.items())
        raise TrainingError(
            f"there are no triples to train on ({reasons or 'the files are empty'}): a row has "
            "prompt, chosen and rejected as lists of {role, content}, in at most "
            f"{max_length} tokens (max_length)"
        )
    if config.max_pairs is not None and config.max_pairs < len(pairs):
        drawn = np.random.default_rng(seed).permutation(len(pairs))[: config.max_pairs]
        pairs = pairs.take(np.sort(drawn))
    return pairs


def _trainer(
    base: Path,
    pairs: RewardPairs,
    tokenizer: Any,
    config: RewardConfig,
    seed: int,
    checkpoints: Path,
    fingerprint: str,
    on_step: Callable[[dict[str, float]], None] | None,
) -> Any:
    """The trainer, ready to run."""
    import torch
    import trl
    from datasets import Dataset
    from datasets.table import InMemoryTable
    from transformers import PrinterCallback, set_seed

    from training.reward_trainer import ScoreTrainer
    from training.trainer import Watch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    bf16 = _bf16(config)
    set_seed(seed)  # draws the head
    # As for policies: whole models train on float32 weights, a frozen base may be bf16.
    model = _load_base(base, torch.bfloat16 if bf16 and config.lora else torch.float32)
    batches = math.ceil(len(pairs) / config.batch_size)
    steps = math.ceil(math.ceil(batches / config.gradient_accumulation) * config.epochs)
    arguments = trl.RewardConfig(
        output_dir=str(checkpoints),
        center_rewards_coefficient=config.center_rewards_coefficient or None,
        pad_token=tokenizer.convert_ids_to_tokens(padding_token(tokenizer)),
        learning_rate=config.learning_rate,
        lr_scheduler_type=config.lr_scheduler,
        warmup_steps=config.warmup_ratio,  # below 1 it is a share of the steps
        weight_decay=config.weight_decay,
        max_grad_norm=config.max_grad_norm,
        num_train_epochs=config.epochs,
        per_device_train_batch_size=config.batch_size,
        gradient_accumulation_steps=config.gradient_accumulation,
        gradient_checkpointing=config.gradient_checkpointing,
        max_length=None,  # read_reward_pairs has seen to it
        disable_dropout=not (config.lora and config.lora.dropout),
        bf16=bf16,
        use_cpu=device == "cpu",
        seed=seed,
        data_seed=seed,
        # The trainer would also save at the end; a short training needs no checkpoint at all.
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
        arguments._n_gpu = 1
    trainer = ScoreTrainer(
        model=model,
        args=arguments,
        train_dataset=Dataset(InMemoryTable(pairs.table()), fingerprint=fingerprint),
        processing_class=tokenizer,
        peft_config=_peft_config(config.lora) if config.lora else None,
        callbacks=[Watch(fingerprint, on_step, model="reward model")],
    )
    trainer.remove_callback(PrinterCallback)
    return trainer


def _load_base(base: Path, dtype: Any) -> Any:
    """The model in ``base`` with a head of one output: its own, or a new one."""
    from transformers import AutoModelForSequenceClassification

    try:
        model, loading = AutoModelForSequenceClassification.from_pretrained(
            str(base),
            num_labels=1,
            dtype=dtype,
            use_safetensors=True,
            trust_remote_code=False,
            local_files_only=True,
            output_loading_info=True,
        )
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        first = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise TrainingError(
            f"{base}: cannot be loaded with a head of one output: {first} (give a causal language "
            "model, or a reward model to train on)"
        ) from error
    trunk = f"{model.base_model_prefix}."
    lost = sorted(
        key for key in loading["missing_keys"] if key.startswith(trunk) and ".pooler." not in key
    )
    if lost:
        raise TrainingError(
            f"{base}: its weights lack {lost[0]}: the checkpoint is incomplete, or of another "
            "architecture than its config.json says"
        )
    return model


def _peft_config(lora: Lora) -> Any:
    from peft import LoraConfig

    modules = lora.target_modules
    return LoraConfig(
        task_type="SEQ_CLS",  # trains the head too
        r=lora.r,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=list(modules) if isinstance(modules, tuple) else modules,
    )


def _bf16(config: RewardConfig) -> bool:
    if config.precision != "auto":
        return config.precision == "bf16"
    import torch

    return bool(torch.cuda.is_available() and torch.cuda.is_bf16_supported())


def _context(base: Path, tokenizer: Any) -> int:
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(str(base), local_files_only=True)
    return context_length(config.get_text_config(), tokenizer)


def _settings(base: Path, config: RewardConfig, seed: int, max_length: int) -> dict[str, Any]:
    """Everything that decides the weights except the triples."""
    import torch
    import transformers
    import trl

    return config.model_dump(mode="json") | {
        "max_length": max_length,
        "precision": "bf16" if _bf16(config) else "float32",
        "device": "cuda" if torch.cuda.is_available() else "cpu",
        "base_revision": folder_revision(base),
        "seed": seed,
        "versions": {
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "trl": trl.__version__,
        },
    }


def _save(model: Any, base: Path, result: RewardResult, fingerprint: str) -> None:
    """Write the model's folder under a temporary name and rename it when it is complete."""
    from peft import PeftModel

    out = result.model_path
    partial = out.with_name(f".{out.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    if isinstance(model, PeftModel):
        # In float32: merged in a shorter type, most of the update would be rounded away.
        model = model.float().merge_and_unload()
    model.save_pretrained(partial)
    copy_tokenizer(base, partial)
    record = asdict(replace(result, history=[])) | {
        "model_path": str(out),
        "fingerprint": fingerprint,
    }
    # Not a .json file: timings must not enter the revision of the model (folder_revision).
    lines = [json.dumps(line) for line in (record, *result.history)]
    (partial / RECORD).write_text("\n".join(lines) + "\n", encoding="utf-8")
    partial.rename(out)


def _recorded(out: Path, fingerprint: str) -> RewardResult:
    """The result that ``out`` was made with."""
    record_file = out / RECORD
    lines = record_file.read_text(encoding="utf-8").splitlines() if record_file.is_file() else []
    record = json.loads(lines[0]) if lines else {}
    if record.pop("fingerprint", None) != fingerprint:
        raise TrainingError(
            f"{out} exists and was not made from these triples and settings: move it away, or "
            "train into another folder"
        )
    history = [json.loads(line) for line in lines[1:]]
    return RewardResult(**record | {"model_path": out, "history": history})
