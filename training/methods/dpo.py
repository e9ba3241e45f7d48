"""A round of training on pairs with TRL's DPOTrainer: triples in, a new policy folder out.

No pair is cut to fit: it is trained on whole, or dropped and counted. For what else holds, see
``prefloop.training.session.fit``.
"""

from __future__ import annotations

from typing import Any, ClassVar

import pyarrow as pa

from prefloop.data.hashing import json_hash
from prefloop.training.config import OWN_LOSSES
from prefloop.training.inputs.pairs import (
    Pairs,
    add_replay,
    draw_triples,
    largest_margin_first,
    read_triples,
    token_pairs,
)
from prefloop.training.inputs.rows import Dropped
from prefloop.training.inputs.tokens import check_embedding
from prefloop.training.methods.held_out import held_out_pairs
from prefloop.training.policy.checkpoints import embeddings
from prefloop.training.session.job import Job
from prefloop.training.session.method import Session, TrainingData
from prefloop.training.session.open_policy import load_reference
from prefloop.training.session.reference import (
    append_columns,
    kept_columns,
    no_reference,
    reference_logps,
)
from prefloop.training.session.setup import dataset_of, disables_dropout, optimiser_steps


class Dpo:
    """Direct preference optimisation on triples; those of the job's ``replay`` are drawn among
    them."""

    takes_reference: ClassVar[bool] = True

    def read(self, job: Job, tokenizer: Any, max_length: int) -> TrainingData[Pairs]:
        """The triples of the job's files, as many and in the order that the config says."""
        config = job.config
        dropped = Dropped()
        triples = read_triples(job.files, dropped)
        if job.replay:
            triples = add_replay(triples, job.replay, share=config.replay_share, seed=job.seed)
        if config.max_pairs is not None:
            triples = draw_triples(triples, config.max_pairs, job.seed)
        if config.order == "margin":
            triples = largest_margin_first(triples)
        pairs = token_pairs(
            triples,
            tokenizer,
            max_length=max_length,
            dropped=dropped,
            rendering=job.rendering,
        )
        check_embedding(
            embeddings(job.policy), job.policy, [*pairs.prompts, *pairs.chosen, *pairs.rejected]
        )
        decides = {"pairs": pairs.digest()}
        if config.stop_early:
            decides["held_out"] = held_out_pairs(job, tokenizer, max_length).digest()
        return TrainingData(pairs, decides, len(pairs), pairs.dropped_overlong, dropped)

    def trainer(self, session: Session, rows: Pairs) -> Any:
        """TRL's trainer, with the reference's log-probabilities in the data or with a reference."""
        from prefloop.training.trainers.pair_trainer import PairCollator, PairTrainer

        job, config = session.job, session.job.config
        table, live_reference = rows.table(), None
        if not config.uses_reference:
            table = append_columns(table, no_reference(len(rows)))
        elif config.precompute_reference_logprobs:
            table = append_columns(table, _reference_columns(session, rows))
        else:
            live_reference = load_reference(job.reference, session.opened)
        arguments = dpo_arguments(session, len(rows))
        arguments.precompute_ref_log_probs = live_reference is None
        held_out = _held_out(session, live=live_reference is not None)
        trainer = session.trainer(
            PairTrainer,
            arguments,
            table,
            ref_model=live_reference,
            eval_dataset=held_out,
            data_collator=PairCollator(pad_token_id=session.tokenizer.pad_token_id),
        )
        trainer.settings = config
        if config.stop_early:
            from prefloop.training.trainers.early_stop import BEST, EarlyStop

            folder = session.checkpoints / BEST
            trainer.early_stop = EarlyStop(trainer, config.stop_early, folder)
            trainer.add_callback(trainer.early_stop)
        if config.reference == "ema" and live_reference is not None:
            from prefloop.training.trainers.ema import follow

            follow(trainer, config.ema_decay)
        if config.order == "length":
            trainer.lengths = rows.lengths()
        return trainer


def _held_out(session: Session, *, live: bool) -> Any:
    """The pairs that are measured meanwhile as a dataset; null where none are. ``live``: the
    reference is asked when it comes to them."""
    job = session.job
    if not job.config.stop_early:
        return None
    pairs = held_out_pairs(job, session.tokenizer, session.max_length)
    table = pairs.table()
    if not job.config.uses_reference:
        table = append_columns(table, no_reference(len(pairs)))
    elif not live:
        table = append_columns(table, _compared(session, pairs))
    return dataset_of(table, pairs.digest())


def _compared(session: Session, pairs: Pairs) -> pa.Table:
    """``reference_logps`` of the job's reference."""
    job, opened = session.job, session.opened
    same = job.policy.resolve() == job.reference.resolve() and opened.whole
    return reference_logps(
        pairs,
        opened.model if same else load_reference(job.reference, opened),
        batch_size=2 * job.config.batch_size,  # two sequences a pair, as in training
        autocast=opened.autocast,
        ld_alpha=job.config.ld_alpha,
    )


def _reference_columns(session: Session, pairs: Pairs) -> pa.Table:
    """The same of the pairs that are trained on, kept in the job's file."""
    job, opened, settings = session.job, session.opened, session.settings

    def compute() -> pa.Table:
        return _compared(session, pairs)

    key = {name: settings[name] for name in ("reference_revision", "ld_alpha", "precision")}
    key |= {"pairs": pairs.token_digest(), "quantize": opened.quantize}
    return kept_columns(job.kept_reference, json_hash(key), compute)


def dpo_arguments(session: Session, pairs: int) -> Any:
    """TRL's ``DPOConfig``, with reference log-probabilities out of the data."""
    from trl import DPOConfig

    config = session.job.config
    weights = config.loss_weights or (1.0,) * len(config.losses)
    of_trl = {
        name: weight
        for name, weight in zip(config.losses, weights, strict=True)
        if name not in OWN_LOSSES
    }
    return DPOConfig(
        **session.arguments(optimiser_steps(pairs, config)),
        # With a loss of ours alone, TRL's counts for nothing.
        loss_type=list(of_trl) or ["sigmoid"],
        loss_weights=list(of_trl.values()) or [0.0],
        ld_alpha=config.ld_alpha,
        f_divergence_type=config.divergence,
        f_alpha_divergence_coef=config.divergence_alpha,
        beta=config.beta,
        use_weighting=config.wpo,
        label_smoothing=config.label_smoothing,
        train_sampling_strategy="sequential" if config.order == "margin" else "random",
        max_length=None,  # token_pairs has seen to it
        per_device_eval_batch_size=config.batch_size,
        precompute_ref_log_probs=True,
        disable_dropout=disables_dropout(config),
    )
