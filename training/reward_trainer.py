"""TRL's RewardTrainer on pairs that are tokenised already.

Imports torch and TRL: import this module inside functions only.
"""

from __future__ import annotations

from typing import Any

from trl import RewardTrainer


class ScoreTrainer(RewardTrainer):  # type: ignore[misc]  # TRL has no types
    """RewardTrainer over a dataset of ``chosen_ids``, ``rejected_ids`` and maybe ``margin``.

    Everything that talks to the hub or writes a model card is off.
    """

    def create_model_card(self, *_: Any, **__: Any) -> None:
        pass

    def _send_telemetry(self) -> None:
        pass
