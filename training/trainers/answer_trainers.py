"""TRL's KTOTrainer and SFTTrainer on answers that are tokenised already.

Imports torch and TRL: import this module inside functions only.
"""

from __future__ import annotations

from typing import Any

from trl import KTOTrainer, SFTTrainer

from prefloop.training.session.steps import GROUPED
from prefloop.training.trainers.answers_only import AnswersOnly
from prefloop.training.trainers.even_steps import EvenRows
from prefloop.training.trainers.offline_mixin import OfflineMixin, Prepared
from prefloop.training.trainers.order import EpochRows, Ordered


class LabelledTrainer(AnswersOnly, EvenRows, Prepared, Ordered, KTOTrainer):  # type: ignore[misc]  # TRL has no types
    """KTOTrainer over ``prompt_ids``, ``completion_ids``, ``KL_completion_ids``, ``label`` and the
    reference's ``ref_logps`` and ``ref_KL_logps``."""

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        if self.batches == GROUPED:  # one order for all epochs, that of the rows
            return KTOTrainer._get_train_sampler(self, train_dataset)
        if self.lengths is None:
            return EpochRows(len(self.train_dataset), self.args.data_seed)
        return super()._get_train_sampler(train_dataset)


class PretokenizedSFTTrainer(AnswersOnly, OfflineMixin, Ordered, SFTTrainer):  # type: ignore[misc]
    """SFTTrainer over ``input_ids`` and ``labels``."""
