"""A round of training on the chosen answers alone with TRL's SFTTrainer.

The loss is the mean negative log-probability of the answers' tokens; the prompt's have none. For
what else holds, see ``prefloop.training.session.fit``.
"""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import pyarrow as pa

from prefloop.training.errors import TrainingError
from prefloop.training.inputs.answers import Answers, read_answers
from prefloop.training.inputs.rows import Dropped
from prefloop.training.inputs.tokens import check_embedding
from prefloop.training.policy.checkpoints import embeddings
from prefloop.training.session.job import Job
from prefloop.training.session.method import Session, TrainingData
from prefloop.training.session.setup import optimiser_steps


class Sft:
    """Supervised training on good answers: the chosen ones of triples, once each, or those of
    ``schemas.UNPAIRED``."""

    takes_reference: ClassVar[bool] = False

    def read(self, job: Job, tokenizer: Any, max_length: int) -> TrainingData[Answers]:
        """The good answers of the job's files."""
        dropped = Dropped()
        data = read_answers(
            job.files,
            tokenizer,
            max_length=max_length,
            max_answers=job.config.max_pairs,
            seed=job.seed,
            good_only=True,
            dropped=dropped,
            rendering=job.rendering,
        )
        check_embedding(embeddings(job.policy), job.policy, [*data.prompts, *data.answers])
        return TrainingData(
            data, {"answers": data.digest()}, len(data), data.dropped_overlong, dropped
        )

    def trainer(self, session: Session, rows: Answers) -> Any:
        """TRL's trainer over whole conversations."""
        from trl import SFTConfig
        from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

        from prefloop.training.trainers.answer_trainers import PretokenizedSFTTrainer

        config = session.job.config
        arguments = SFTConfig(
            **session.arguments(optimiser_steps(len(rows), config)),
            max_length=None,  # read_answers has seen to it
            dataset_kwargs={"skip_prepare_dataset": True},
        )
        if config.padding_free:
            _require_apart(session.opened.model)
        collator = DataCollatorForLanguageModeling(
            pad_token_id=session.tokenizer.pad_token_id, padding_free=config.padding_free
        )
        trainer = session.trainer(
            PretokenizedSFTTrainer, arguments, _table(rows), data_collator=collator
        )
        if config.order == "length":
            trainer.lengths = rows.lengths()
        return trainer


_ATTENTION = {"full_attention", "sliding_attention"}
_TRIED = (6, 5)
"""Tokens of the sequences in one row that a model is tried on."""
_NEAR, _NEAR_IN_SHORT_TYPES = 1e-3, 0.2
"""Mean difference of log-probabilities in nats that rounding may make."""


def _require_apart(model: Any) -> None:
    """Raise ``TrainingError`` for a model that would let answers in one row see each other: its
    layers carry a state along, or its attention is not transformers' own, or it does not go by
    positions, which is tried.
    """
    settings = model.config.get_text_config()
    carrying = sorted(set(getattr(settings, "layer_types", None) or ()) - _ATTENTION)
    if carrying or getattr(model, "_is_stateful", False):
        raise TrainingError(
            f"padding_free: layers of this model ({', '.join(carrying) or settings.model_type}) "
            "carry a state from one answer of a row into the next: leave padding_free out"
        )
    if not getattr(model, "_supports_attention_backend", False):
        raise TrainingError(
            f"padding_free: the attention of {settings.model_type} does not keep answers in one "
            "row apart: leave padding_free out"
        )
    if _sees_others(model):
        raise TrainingError(
            f"padding_free: models of type {settings.model_type} let answers in one row see each "
            "other: leave padding_free out"
        )


def _sees_others(model: Any) -> bool:
    """Whether ``model`` says something else of two sequences in one row than of each alone."""
    import torch

    draw = np.random.default_rng(0)
    vocabulary = model.get_input_embeddings().weight.shape[0]
    alone = [
        torch.from_numpy(draw.integers(vocabulary, size=(1, size))).to(model.device)
        for size in _TRIED
    ]
    positions = torch.cat([torch.arange(size, device=model.device) for size in _TRIED])[None]
    with torch.no_grad():
        apart = torch.cat([model(one, use_cache=False).logits for one in alone], dim=1)
        row = model(torch.cat(alone, dim=1), position_ids=positions, use_cache=False).logits
    differ = (apart.float().log_softmax(-1) - row.float().log_softmax(-1)).abs().mean()
    near = _NEAR if model.dtype == torch.float32 else _NEAR_IN_SHORT_TYPES
    return not bool(differ < near)


def _table(data: Answers) -> pa.Table:
    """``input_ids``, and ``labels`` that leave out the prompt."""
    ids, labels = [], []
    for prompt, answer in zip(data.prompts, data.answers, strict=True):
        ids.append(np.concatenate([prompt, answer]))
        labels.append(np.concatenate([np.full(len(prompt), -100, np.int32), answer]))
    kind = pa.large_list(pa.int32())
    return pa.table({"input_ids": pa.array(ids, kind), "labels": pa.array(labels, kind)})
