"""Each row of an optimiser step counts the same, however the step is cut into batches.

Imports torch and TRL: import this module inside functions only.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class PartOfStep:
    """How much of a larger batch, whose gradient is added up, the rows of a forward pass are."""

    rows: float = 1.0
    chosen_tokens: float = 1.0
    """The same by tokens of the chosen answers, over which ``sft`` takes its mean."""

    def of(self, loss: str) -> float:
        """What the mean that ``loss`` is counts in that of the larger batch."""
        return self.chosen_tokens if loss == "sft" else self.rows


class EvenSteps:
    """In front of a trainer: the batches of an optimiser step have a ``share`` in it by their rows.
    transformers takes the mean of their means, in which a short batch counts as much as a full one.
    """

    share = PartOfStep()
    """Of the batch that is computed, times the number of batches: transformers divides by that."""
    _parts: deque[PartOfStep] = deque()  # noqa: RUF012  # replaced before each step

    def get_batch_samples(self, *given: Any, **named: Any) -> Any:
        """The batches of an optimiser step."""
        batches, items = super().get_batch_samples(*given, **named)  # type: ignore[misc]
        self._parts = deque(_parts_of(batches))
        return batches, items

    def training_step(self, *given: Any, **named: Any) -> Any:
        """The gradient of one of them."""
        if not self._parts:
            return super().training_step(*given, **named)  # type: ignore[misc]
        self.share = self._parts.popleft()
        try:
            return super().training_step(*given, **named)  # type: ignore[misc]
        finally:
            self.share = PartOfStep()


class EvenRows(EvenSteps):
    """``EvenSteps`` of a trainer whose loss is a mean over rows."""

    def compute_loss(self, *given: Any, **named: Any) -> Any:
        """The loss, as much of it as these rows have a ``share`` in."""
        found = super().compute_loss(*given, **named)  # type: ignore[misc]
        if isinstance(found, tuple):
            return found[0] * self.share.rows, *found[1:]
        return found * self.share.rows


def _parts_of(batches: Sequence[dict[str, Any]]) -> list[PartOfStep]:
    """What each of ``batches`` is of all of them; none where they are not of rows."""
    if not all("input_ids" in batch for batch in batches):
        return []
    rows = [len(batch["input_ids"]) for batch in batches]
    tokens = [_chosen_tokens(batch) for batch in batches]
    return [
        PartOfStep(len(batches) * of_rows / sum(rows), len(batches) * of_tokens / sum(tokens))
        for of_rows, of_tokens in zip(rows, tokens, strict=True)
    ]


def _chosen_tokens(batch: dict[str, Any]) -> int:
    """Those of the first half's answers; 1 where the batch does not say."""
    mask = batch.get("completion_mask")
    return 1 if mask is None else int(mask[: len(mask) // 2].sum())
