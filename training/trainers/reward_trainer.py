"""TRL's RewardTrainer on pairs that are tokenised already.

Imports torch and TRL: import this module inside functions only.
"""

from __future__ import annotations

from trl import RewardTrainer

from prefloop.training.trainers.even_steps import EvenRows
from prefloop.training.trainers.offline_mixin import OfflineMixin


class PretokenizedRewardTrainer(EvenRows, OfflineMixin, RewardTrainer):  # type: ignore[misc]  # TRL has no types
    """RewardTrainer over a dataset of ``chosen_ids``, ``rejected_ids`` and maybe ``margin``."""
