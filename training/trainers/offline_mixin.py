"""What stands in front of every trainer of TRL's: nothing goes out, nothing is prepared twice.

Imports nothing heavy.
"""

from __future__ import annotations

from typing import Any


class OfflineMixin:
    """Without a model card, and without a word to the hub."""

    def create_model_card(self, *_: Any, **__: Any) -> None:
        """TRL's hook; does nothing."""

    def _send_telemetry(self) -> None:
        pass


class Prepared(OfflineMixin):
    """Over a dataset that has token ids and the reference's log-probabilities."""

    def _prepare_dataset(self, dataset: Any, *_: Any) -> Any:
        return dataset  # tokenised by prefloop.training.inputs.tokens, what is over-long dropped

    def _precompute_ref_logps(self, dataset: Any, *_: Any) -> Any:
        return dataset  # computed by prefloop.training.policy.logprobs, for any reference
