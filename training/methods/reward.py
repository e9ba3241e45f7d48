"""Training of a reward model: triples in, a checkpoint that scores conversations out.

The model is Bradley and Terry's (1952): P(chosen preferred) = sigma(r_chosen - r_rejected), and
the loss of a pair is -log of it (Ouyang et al. 2022, arXiv 2203.02155, equation 1).

Invariants:

* The folder ``out`` is complete if it exists: it is written beside and renamed. It is a plain
  sequence-classification checkpoint, also after training with LoRA.
* What is trained on is what is later scored: token ids of both come from
  ``prefloop.labelers.scorers.sequence_scores``.
* Same triples, base, config and seed give the same weights (bit for bit on a CPU with the same
  number of threads), whether or not the training was interrupted and resumed.
* No conversation is cut to fit: its pair is trained on whole, or dropped and counted.
"""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from prefloop.data.hashing import folder_revision, json_hash
from prefloop.data.storage.begun_folder import begin_folder
from prefloop.labelers.model_loading import loading_model, making_model
from prefloop.labelers.scorers.sequence_scores import SequenceScorer, context_length, padding_token
from prefloop.labelers.statistics.winrate import win_rate
from prefloop.training.config import RewardConfig
from prefloop.training.errors import TrainingError
from prefloop.training.inputs.reward_pairs import RewardPairs, read_reward_pairs
from prefloop.training.inputs.rows import Dropped, prompts_in
from prefloop.training.inputs.tokens import check_embedding
from prefloop.training.policy.checkpoints import (
    base_of,
    copy_tokenizer,
    embeddings,
    is_adapter,
    load_tokenizer,
)
from prefloop.training.policy.heldout import TRAINED_PROMPT, Heldout, require_readable
from prefloop.training.session.checkpoint_folder import checkpoint_folder
from prefloop.training.session.records import read_record, write_record
from prefloop.training.session.setup import (
    dataset_of,
    disables_dropout,
    environment,
    on_one_gpu,
    optimiser_steps,
    peft_config,
    quiet_trainer,
    shared_arguments,
    uses_bf16,
)
from prefloop.training.session.shortage import full_disk_is_named, full_memory_is_named
from prefloop.training.session.steps import take_steps
from prefloop.training.session.weights_moved import unchanged, weight_sums

if TYPE_CHECKING:
    from prefloop.training.session.watch import Watch

logger = logging.getLogger(__name__)

NOT_FINITE = "not_finite"
"""Why a held-out pair was left out: a score is no finite number."""


@dataclass(frozen=True)
class RewardJob:
    """One training of a reward model."""

    base: Path
    """Folder of a causal language model, which gets a head of one output drawn by ``seed``, or of a
    reward model, which keeps its own."""
    files: tuple[Path, ...]
    """Parquet of triples (see ``prefloop.training.inputs.reward_pairs``)."""
    out: Path
    config: RewardConfig
    seed: int

    @property
    def checkpoints(self) -> Path:
        """Where an interrupted training goes on from."""
        return checkpoint_folder(self.out)


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


def train_reward(
    job: RewardJob,
    *,
    on_step: Callable[[dict[str, float]], None] | None = None,
    verbose: bool = False,
) -> RewardResult:
    """Train the model in ``job.base`` to score the chosen answers of the files higher; save it.

    ``on_step`` gets each step's record; an exception it raises stops the training and passes
    through, and nothing is saved. Checkpoints are kept beside ``job.out`` while training runs, and
    an interrupted call with the same arguments goes on from the last one. An ``out`` that these
    arguments made already is not made again: its recorded result is returned.

    Raises ``TrainingError`` if there is nothing to train on, the base is unusable, the loss
    becomes NaN, or ``out`` holds something else.
    """
    started = time.monotonic()
    base, config = job.base, job.config
    if config.lora and config.lora.quantize:
        raise TrainingError(
            "lora.quantize is for policies: a reward model's adapter is merged when it is saved, "
            "which 4 bits would round away"
        )
    if is_adapter(base):
        raise TrainingError(
            f"{base} is a LoRA adapter: give its base, {base_of(base)}, or a merged checkpoint"
        )
    base_of(base)
    tokenizer = load_tokenizer(base)
    max_length = min(config.max_length, _context(base, tokenizer))
    tokenizer.model_max_length = 10**9  # read_reward_pairs counts what is too long; it would warn
    pairs = _training_pairs(job, tokenizer, max_length)
    settings = _settings(job, max_length)
    fingerprint = json_hash({"pairs": pairs.digest(), **settings})
    if job.out.exists():
        return _recorded(job.out, fingerprint)

    from prefloop.training.session.watch import Watch, training_alone

    with (
        training_alone(verbose=verbose),
        full_disk_is_named(job.out),
        full_memory_is_named(job.out),
    ):
        watch = Watch(fingerprint, on_step, model="reward model")
        with making_model():
            trainer = _trainer(job, pairs, tokenizer, fingerprint, watch)
        before = weight_sums(trainer.model)
        steps = take_steps(trainer, job.checkpoints, fingerprint)
        if weight_sums(trainer.model) == before:
            logger.warning("%s: %s", job.out, unchanged(config, steps.history))
        result = RewardResult(
            model_path=job.out,
            steps=steps.number,
            examples=len(pairs),
            dropped=pairs.dropped,
            seconds=time.monotonic() - started,
            step_seconds=steps.seconds,
            settings=settings,
            history=steps.history,
        )
        _save(trainer.model, base, result, fingerprint)
    shutil.rmtree(job.checkpoints, ignore_errors=True)
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


def check_heldout(base: Path, files: Sequence[Path], max_length: int) -> None:
    """Raise ``TrainingError`` where ``files`` cannot be what a reward model made of ``base`` is
    measured on: a fault to be found before it is trained."""
    dropped = Dropped()
    pairs = read_reward_pairs(files, load_tokenizer(base), max_length=max_length, dropped=dropped)
    require_readable(files, len(pairs), dropped)


def _training_pairs(job: RewardJob, tokenizer: Any, max_length: int) -> RewardPairs:
    config, dropped = job.config, Dropped()
    pairs = read_reward_pairs(
        job.files,
        tokenizer,
        max_length=max_length,
        with_margin=config.use_margin,
        dropped=dropped,
    )
    if dropped.counts and len(pairs):
        logger.warning("%s: rows were not trained on: %s", job.out, dropped.said())
    if not len(pairs):
        reasons = dropped.said()
        raise TrainingError(
            f"there are no triples to train on ({reasons or 'the files are empty'}): a row has "
            "prompt, chosen and rejected as lists of {role, content}, in at most "
            f"{max_length} tokens (max_length)"
        )
    tokens = (np.asarray(ids, np.int32) for ids in [*pairs.chosen, *pairs.rejected])
    check_embedding(embeddings(job.base), job.base, tokens)
    if config.max_pairs is not None and config.max_pairs < len(pairs):
        drawn = np.random.default_rng(job.seed).permutation(len(pairs))[: config.max_pairs]
        pairs = pairs.take(np.sort(drawn))
    return pairs


def _trainer(
    job: RewardJob, pairs: RewardPairs, tokenizer: Any, fingerprint: str, watch: Watch
) -> Any:
    """The trainer, ready to run."""
    import torch
    import trl
    from transformers import set_seed

    from prefloop.training.trainers.reward_trainer import PretokenizedRewardTrainer

    config = job.config
    set_seed(job.seed)  # draws the head
    # As for policies: whole models train on float32 weights, a frozen base may be bf16.
    bf16 = uses_bf16(config) and config.lora
    model = _load_base(job.base, torch.bfloat16 if bf16 else torch.float32)
    steps = optimiser_steps(len(pairs), config)
    arguments = trl.RewardConfig(
        **shared_arguments(config, checkpoints=job.checkpoints, steps=steps, seed=job.seed),
        center_rewards_coefficient=config.center_rewards_coefficient or None,
        pad_token=tokenizer.convert_ids_to_tokens(padding_token(tokenizer)),
        max_length=None,  # read_reward_pairs has seen to it
        disable_dropout=disables_dropout(config),
    )
    trainer = PretokenizedRewardTrainer(
        model=model,
        args=on_one_gpu(arguments),
        train_dataset=dataset_of(pairs.table(), fingerprint),
        processing_class=tokenizer,
        # Trains the head too.
        peft_config=peft_config(config.lora, "SEQ_CLS") if config.lora else None,
        callbacks=[watch],
    )
    return quiet_trainer(trainer)


def _load_base(base: Path, dtype: Any) -> Any:
    """The model in ``base`` with a head of one output: its own, or a new one."""
    from transformers import AutoModelForSequenceClassification

    from prefloop.labelers.scorers.attention import attend_as_made

    try:
        with loading_model():
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
    attend_as_made(model)
    return model


def _context(base: Path, tokenizer: Any) -> int:
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(str(base), local_files_only=True)
    return context_length(config.get_text_config(), tokenizer)


def _settings(job: RewardJob, max_length: int) -> dict[str, Any]:
    """Everything that decides the weights except the triples."""
    return (
        job.config.model_dump(mode="json")
        | environment(job.config)
        | {"max_length": max_length, "base_revision": folder_revision(job.base), "seed": job.seed}
    )


def _save(model: Any, base: Path, result: RewardResult, fingerprint: str) -> None:
    """Write the model's folder under a temporary name and rename it when it is complete."""
    from peft import PeftModel

    out = result.model_path
    partial = begin_folder(out)
    if isinstance(model, PeftModel):
        # In float32: merged in a shorter type, most of the update would be rounded away.
        model = model.float().merge_and_unload()
    model.save_pretrained(partial)
    copy_tokenizer(base, partial)
    record = asdict(replace(result, history=[])) | {"model_path": str(out)}
    write_record(partial, fingerprint, record, result.history)
    partial.rename(out)


def _recorded(out: Path, fingerprint: str) -> RewardResult:
    """The result that ``out`` was made with."""
    record, history = read_record(out, fingerprint)
    return RewardResult(**record | {"model_path": out, "history": history})
