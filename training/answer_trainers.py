"""TRL's KTOTrainer and SFTTrainer on answers that are tokenised already.

Imports torch and TRL: import this module inside functions only.
"""

from __future__ import annotations

from typing import Any

from trl import KTOTrainer, SFTTrainer

from training.order import Ordered


class LabelledTrainer(KTOTrainer):  # type: ignore[misc]  # TRL has no types
    """KTOTrainer over ``prompt_ids``, ``completion_ids``, ``KL_completion_ids``, ``label`` and the
    reference's ``ref_logps`` and ``ref_KL_logps``.

    Everything that talks to the hub or writes a model card is off.
    """

    def _prepare_dataset(self, dataset: Any, *_: Any) -> Any:
        return dataset  # tokenised by training.tokens, over-long answers dropped

    def _precompute_ref_logps(self, dataset: Any, *_: Any) -> Any:
        return dataset  # computed by training.logprobs, for any reference

    def create_model_card(self, *_: Any, **__: Any) -> None:
        pass

    def _send_telemetry(self) -> None:
        pass


class ImitationTrainer(Ordered, SFTTrainer):  # type: ignore[misc]
    """SFTTrainer over ``input_ids`` and ``labels``, with the hub and the model card off."""

    def create_model_card(self, *_: Any, **__: Any) -> None:
        pass

    def _send_telemetry(self) -> None:
        pass
