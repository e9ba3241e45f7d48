"""One training of a policy, whatever the method: begun or resumed, watched, saved, recorded.

Invariants:

* The folder ``out`` is complete if it exists: it is written beside and renamed.
* Same data, policy, reference, config and seed give the same weights (bit for bit on a CPU with
  the same number of threads), whether or not the training was interrupted and resumed.

A method (``prefloop.training.methods``) says what it reads and which trainer it makes of it; see
``prefloop.training.session.method.TrainingMethod``.
"""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from prefloop.data.hashing import json_hash
from prefloop.data.storage.begun_folder import begin_folder, begun_beside
from prefloop.training.policy.checkpoints import (
    base_of,
    complete_policy,
    context_length,
    load_tokenizer,
)
from prefloop.training.session.checkpoint_folder import (
    SNAPSHOTS,
    adopt_earlier,
    checkpoint_folder,
)
from prefloop.training.session.guards import watch_of
from prefloop.training.session.job import Job, settings_of
from prefloop.training.session.method import Rows, Session, TrainingMethod
from prefloop.training.session.open_policy import open_policy
from prefloop.training.session.records import RECORD, read_record, write_record
from prefloop.training.session.reference import is_first
from prefloop.training.session.setup import is_sharded, quiet_trainer
from prefloop.training.session.shortage import full_disk_is_named, full_memory_is_named
from prefloop.training.session.steps import (
    GROUPED,
    checkpoint_mark,
    order_begun,
    take_steps,
)
from prefloop.training.session.weights_moved import unchanged, weight_sums

logger = logging.getLogger(__name__)

OnStep = Callable[[dict[str, float]], None]
"""Gets the record of each optimiser step; what it raises stops the training."""


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
    dropped: dict[str, int] = field(default_factory=dict)
    """Rows that were not trained on, by reason, those that are too long among them."""
    guard: dict[str, Any] | None = None
    """The guard that stopped the training (``prefloop.training.session.guards.TrainingAlarm``) and
    ``restored_step``, the step whose weights were saved (0: those that training began with); null
    where none did."""
    early: dict[str, Any] | None = None
    """With ``stop_early``: ``kept_step``, whose weights were saved (where no guard stopped the
    training), ``stopped``, whether it ended before its last step, and ``measured``, step, loss and
    accuracy of each look at held-out pairs."""
    how: dict[str, str] = field(default_factory=dict)
    """How it was computed, where that is decided while training: ``batches``, the order of batches
    of like length (``prefloop.training.session.steps``); ``prompts``, ``shared`` where both answers
    of a pair went behind one forward pass of their prompt, else why not. Earlier versions did not
    say."""


def fit(
    job: Job,
    method: TrainingMethod[Rows],
    *,
    on_step: OnStep | None = None,
    verbose: bool = False,
) -> TrainResult:
    """Train ``job.policy`` by ``method`` and save the new policy as ``job.out``.

    ``on_step`` gets each step's record; an exception it raises stops the training and passes
    through, and nothing is saved. Checkpoints are kept beside ``job.out`` while training runs (see
    ``prefloop.training.session.checkpoint_folder``): an interrupted call with the same arguments
    goes on from the last one, and an
    ``out`` that these arguments made already is not made again: its recorded result is returned.
    Where a guard of the config goes off, training stops, and what is saved are the last weights
    that were put aside while all was well.

    Raises ``TrainingError`` if there is nothing to train on, a model folder is unusable, the
    loss becomes NaN, or ``out`` holds something else.
    """
    started = time.monotonic()
    config, out = job.config, job.out
    tokenizer = load_tokenizer(job.policy)
    max_length = min(config.max_length, context_length(job.policy))
    data = method.read(job, tokenizer, max_length)
    settings = settings_of(job, max_length, takes_reference=method.takes_reference)
    fingerprint = json_hash({**data.decides, **settings})
    if out.exists():
        return recorded(out, fingerprint)
    if data.dropped.counts:
        logger.warning("%s: rows were not trained on: %s", out, data.dropped.said())
    from prefloop.training.session.watch import Watch, last_snapshot, training_alone

    checkpoints = checkpoint_folder(out)
    if is_first():
        adopt_earlier(out, fingerprint)
    ordered = config.order == "length" or config.method == "kto"
    batches = order_begun(checkpoints, fingerprint) if ordered else GROUPED
    marker = checkpoint_mark(fingerprint, batches)
    guards = watch_of(config)
    watch = Watch(marker, on_step, guards=guards, snapshots=checkpoints / SNAPSHOTS)
    with training_alone(verbose=verbose), full_disk_is_named(out), full_memory_is_named(out):
        session = Session(
            job=job,
            tokenizer=tokenizer,
            max_length=max_length,
            settings=settings,
            fingerprint=fingerprint,
            checkpoints=checkpoints,
            opened=open_policy(job.policy, config),
            callbacks=[watch],
            batches=batches,
        )
        trainer = watch.trainer = quiet_trainer(method.trainer(session, data.rows))
        before = None if is_sharded() else weight_sums(trainer.model)
        steps = take_steps(trainer, checkpoints, marker)
        if before is not None and weight_sums(trainer.model) == before:
            logger.warning("%s: %s", out, unchanged(config, steps.history))
        result = TrainResult(
            policy_path=out,
            base=base_of(job.policy).resolve() if config.lora else None,
            steps=steps.number,
            examples=data.examples,
            dropped_overlong=data.dropped_overlong,
            seconds=time.monotonic() - started,
            step_seconds=steps.seconds,
            settings=settings,
            history=steps.history,
            dropped=data.dropped.as_dict(),
            how=({"batches": batches} if ordered else {}) | getattr(trainer, "how", {}),
        )
        early = getattr(trainer, "early_stop", None)
        restored = early.weights() if early else None
        if early:
            result = replace(result, early=early.record())
        if guards.stopped:
            restored = last_snapshot(checkpoints / SNAPSHOTS) or job.policy
            step = int(restored.name) if restored != job.policy else 0
            result = replace(result, guard={**guards.stopped.as_dict(), "restored_step": step})
        _save(trainer, job.policy, result, fingerprint, restored)
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
    partial = begun_beside(out)
    main = trainer.is_world_process_zero()
    if main:
        begin_folder(out)
    if not weights:
        save_weights(trainer, partial)
    elif main:
        ignored = shutil.ignore_patterns(RECORD)
        shutil.copytree(weights, partial, ignore=ignored, dirs_exist_ok=True)
    if main:
        complete_policy(policy, partial)
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
