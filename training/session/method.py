"""What a training method says of itself, and the session that it is handed."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Generic, Protocol, TypeVar

import pyarrow as pa

from prefloop.labelers.model_loading import making_model
from prefloop.training.errors import TrainingError
from prefloop.training.inputs.rows import Dropped
from prefloop.training.session.job import Job
from prefloop.training.session.open_policy import OpenPolicy
from prefloop.training.session.setup import dataset_of, on_one_gpu, shared_arguments
from prefloop.training.session.steps import SHUFFLED

Rows = TypeVar("Rows")
"""What a method trains on, in its own form."""


@dataclass(frozen=True)
class TrainingData(Generic[Rows]):
    """What a method has read."""

    rows: Rows
    decides: dict[str, Any]
    """What of it decides the new weights, as it stands in the training's fingerprint."""
    examples: int
    dropped_overlong: int = 0
    dropped: Dropped = field(default_factory=Dropped)
    """Rows that were not used, those that are too long among them."""


@dataclass(frozen=True)
class Session:
    """One training that has been set up: all that a method needs to make its trainer."""

    job: Job
    tokenizer: Any
    max_length: int
    """Tokens of prompt and answer: the config's, or the model's context where that is less."""
    settings: dict[str, Any]
    """See ``prefloop.training.session.job.settings_of``."""
    fingerprint: str
    """Hash of ``settings`` and the data."""
    checkpoints: Path
    opened: OpenPolicy
    callbacks: list[Any]
    batches: str = SHUFFLED
    """In which order batches of like length are drawn (``prefloop.training.session.steps``)."""

    def arguments(self, steps: int) -> dict[str, Any]:
        """The arguments of TRL's configs that every method gives."""
        job = self.job
        return {
            **shared_arguments(
                job.config, checkpoints=self.checkpoints, steps=steps, seed=job.seed
            ),
            # TRL trains without a cache in any case; this is what the saved config.json will say,
            # and false, the trainer's default, would make the new policy slow to sample from.
            "use_cache": self.opened.model.config.use_cache,
        }

    def trainer(self, kind: Any, arguments: Any, rows: pa.Table, **own: Any) -> Any:
        """A trainer of the class ``kind`` over ``rows``; ``own`` is what only this class takes.
        Raises ``TrainingError`` where the adapter does not fit the model."""
        from transformers import set_seed

        peft = self.opened.peft
        try:
            with making_model():
                set_seed(self.job.seed)  # draws the adapter
                made = kind(
                    model=self.opened.model,
                    args=on_one_gpu(arguments),
                    train_dataset=dataset_of(rows, self.fingerprint),
                    processing_class=self.tokenizer,
                    peft_config=peft,
                    callbacks=self.callbacks,
                    **own,
                )
        except ValueError as error:
            if peft is None or "target" not in str(error).casefold():
                raise
            raise TrainingError(
                f"train.lora does not fit {self.job.policy}: {' '.join(str(error).split())}: name "
                "other modules in train.lora.target_modules"
            ) from error
        made.batches = self.batches
        return made


class TrainingMethod(Protocol[Rows]):
    """What is a method's own; all else is ``prefloop.training.session.fit.fit``."""

    takes_reference: ClassVar[bool]
    """Whether the job's reference is part of what decides the new weights."""

    def read(self, job: Job, tokenizer: Any, max_length: int, /) -> TrainingData[Rows]:
        """What is trained on. Raises ``TrainingError`` where that is nothing."""

    def trainer(self, session: Session, rows: Rows, /) -> Any:
        """TRL's trainer over ``rows``, ready to run."""
