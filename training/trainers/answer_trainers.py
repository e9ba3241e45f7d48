"""TRL's KTOTrainer and SFTTrainer on answers that are tokenised already.

Imports torch and TRL: import this module inside functions only.
"""

from __future__ import annotations

from trl import KTOTrainer, SFTTrainer

from prefloop.training.trainers.offline_mixin import OfflineMixin, Prepared
from prefloop.training.trainers.order import Ordered


class LabelledTrainer(Prepared, KTOTrainer):  # type: ignore[misc]  # TRL has no types
    """KTOTrainer over ``prompt_ids``, ``completion_ids``, ``KL_completion_ids``, ``label`` and the
    reference's ``ref_logps`` and ``ref_KL_logps``."""


class PretokenizedSFTTrainer(OfflineMixin, Ordered, SFTTrainer):  # type: ignore[misc]
    """SFTTrainer over ``input_ids`` and ``labels``."""
