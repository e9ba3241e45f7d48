"""A round of training on single answers with TRL's KTOTrainer (Ethayarajh et al. 2024, arXiv
2402.01306, equation 7): labelled answers in, a new policy folder out.

The KL term of a batch comes from answers behind prompts that are not theirs: each prompt keeps
one such answer, of like length, for all epochs, while each epoch draws an order of its own. For
what else holds, see ``prefloop.training.session.fit``.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa

from prefloop.data.hashing import json_hash
from prefloop.training.errors import TrainingError
from prefloop.training.inputs.answers import Answers, read_answers
from prefloop.training.inputs.pairs import digest_of
from prefloop.training.inputs.rows import Dropped
from prefloop.training.inputs.tokens import TokenIds, check_embedding
from prefloop.training.policy.checkpoints import embeddings
from prefloop.training.session.job import Job
from prefloop.training.session.method import Session, TrainingData
from prefloop.training.session.open_policy import load_reference
from prefloop.training.session.reference import append_columns, kept_columns, shared_logprobs
from prefloop.training.session.setup import disables_dropout, optimiser_steps


class Kto:
    """Kahneman-Tversky optimisation on labelled answers: shards of ``schemas.UNPAIRED`` or of
    triples (see ``prefloop.training.inputs.answers.read_answers``)."""

    takes_reference: ClassVar[bool] = True

    def read(self, job: Job, tokenizer: Any, max_length: int) -> TrainingData[Answers]:
        """The answers of the job's files. Raises ``TrainingError`` for answers of one label."""
        config, dropped = job.config, Dropped()
        data = read_answers(
            job.files,
            tokenizer,
            max_length=max_length,
            max_answers=config.max_pairs,
            seed=job.seed,
            dropped=dropped,
            rendering=job.rendering,
        )
        check_embedding(embeddings(job.policy), job.policy, [*data.prompts, *data.answers])
        if len(set(data.labels)) < 2:
            word = "good" if data.labels[0] else "bad"
            raise TrainingError(
                f"all {len(data)} answers are {word} ones, and KTO needs both: sample more "
                "candidates per prompt, or let another labeler judge"
            )
        if config.order == "length":
            from prefloop.training.trainers.order import GroupedLengths

            data = data.take(list(GroupedLengths(data.lengths(), config.batch_size, job.seed)))
        return TrainingData(
            data, {"answers": data.digest()}, len(data), data.dropped_overlong, dropped
        )

    def trainer(self, session: Session, rows: Answers) -> Any:
        """TRL's trainer, with the reference's log-probabilities in the data."""
        from trl import KTOConfig
        from trl.trainer.kto_trainer import DataCollatorForUnpairedPreference

        from prefloop.training.trainers.answer_trainers import LabelledTrainer

        config = session.job.config
        others = mismatched_answers(rows.prompts, rows.answers, config.batch_size)
        ids = pa.large_list(pa.int32())
        table = pa.table(
            {
                "prompt_ids": pa.array(rows.prompts, ids),
                "completion_ids": pa.array(rows.answers, ids),
                "KL_completion_ids": pa.array(others, ids),
                "label": rows.labels,
            }
        )
        arguments = KTOConfig(
            **session.arguments(optimiser_steps(len(rows), config)),
            beta=config.beta,
            desirable_weight=config.desirable_weight,
            undesirable_weight=config.undesirable_weight,
            max_length=None,  # read_answers has seen to it
            precompute_ref_log_probs=True,
            disable_dropout=disables_dropout(config),
        )
        trainer = session.trainer(
            LabelledTrainer,
            arguments,
            append_columns(table, _reference_columns(session, rows, others)),
            data_collator=DataCollatorForUnpairedPreference(
                pad_token_id=session.tokenizer.pad_token_id
            ),
        )
        if config.order == "length":
            trainer.lengths = rows.lengths()
        return trainer


def _reference_columns(session: Session, data: Answers, others: list[TokenIds]) -> pa.Table:
    """The reference's log-probabilities of the answers and of ``others`` behind the same prompts,
    in columns of the names that TRL's collator reads."""
    job, opened, settings = session.job, session.opened, session.settings

    def compute() -> pa.Table:
        model = load_reference(job.reference, opened)
        own, other = (
            shared_logprobs(
                model,
                data.prompts,
                answers,
                batch_size=job.config.batch_size,
                autocast=opened.autocast,
            )
            for answers in (data.answers, others)
        )
        return pa.table({"ref_logps": own, "ref_KL_logps": other})

    key = {name: settings[name] for name in ("reference_revision", "precision", "batch_size")}
    key |= {"answers": data.digest(), "others": digest_of(others), "quantize": opened.quantize}
    return kept_columns(job.kept_reference, json_hash(key), compute)


def mismatched_answers(
    prompts: Sequence[TokenIds], answers: Sequence[TokenIds], batch_size: int
) -> list[TokenIds]:
    """For each row the answer of another to another prompt: of the rows of its batch the nearest
    one before it, the last one being before the first. Where the whole batch has one prompt, it is
    of all rows; where all have, another answer to that one has to do."""
    keys = [np.asarray(prompt).tobytes() for prompt in prompts]
    rows = range(len(keys))
    one_prompt = len(set(keys)) == 1

    def other(row: int) -> int:
        start = row - row % batch_size
        own = min(batch_size, len(keys) - start)
        in_batch = (start + (row - start - back) % own for back in range(1, own))
        anywhere = ((row - back) % len(keys) for back in range(1, len(keys)))
        found = (at for at in chain(in_batch, anywhere) if one_prompt or keys[at] != keys[row])
        return next(found, row)

    return [answers[other(row)] for row in rows]
