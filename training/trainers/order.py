"""The order of the training data within an epoch.

Imports torch: import this module inside functions only.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from transformers.trainer_pt_utils import get_length_grouped_indices

from prefloop.data.hashing import derive_seed


class LikeLengths(torch.utils.data.Sampler[int]):
    """Rows of like length next to each other, in an order drawn by seed and epoch.

    transformers' own sampler goes by the state of the random numbers, which a resumed training does
    not have.
    """

    def __init__(self, lengths: Sequence[int], batch_size: int, seed: int) -> None:
        self.lengths, self.batch_size, self.seed = list(lengths), batch_size, seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Called by the trainer at the beginning of each epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(derive_seed(self.seed, self.epoch, "lengths"))
        yield from get_length_grouped_indices(self.lengths, self.batch_size, generator=generator)


class Ordered:
    """In front of a trainer: rows of like length share a batch where ``lengths`` is set."""

    lengths: Sequence[int] | None = None
    """Tokens of each row; set by the caller before training."""

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        if self.lengths is None:
            return super()._get_train_sampler(train_dataset)  # type: ignore[misc]
        arguments = self.args  # type: ignore[attr-defined]
        return LikeLengths(self.lengths, arguments.per_device_train_batch_size, arguments.data_seed)
