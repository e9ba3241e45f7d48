"""The order of the training data within an epoch.

Imports torch: import this module inside functions only.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers.trainer_pt_utils import get_length_grouped_indices

from prefloop.data.hashing import derive_seed
from prefloop.training.session.setup import processes
from prefloop.training.session.steps import GROUPED, SHUFFLED

_MOST_BATCHES = 50
"""Batches whose rows are sorted by length together, at most: which rows share one stays a draw."""

_Order = NDArray[np.int64]


class EpochRows(torch.utils.data.Sampler[int]):
    """All rows in an order that seed and epoch draw.

    transformers' own sampler goes by the state of the random numbers, which a resumed training does
    not have.
    """

    def __init__(self, rows: int, seed: int) -> None:
        self.rows, self.seed = rows, seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Called by the trainer at the beginning of each epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.rows

    def __iter__(self) -> Iterator[int]:
        yield from self._draw().permutation(self.rows).tolist()

    def _draw(self) -> np.random.Generator:
        return np.random.default_rng(derive_seed(self.seed, self.epoch, "rows"))


class LikeLengths(EpochRows):
    """Rows of like length share a batch; the batches come in no order of length, and those of one
    optimiser step are of different lengths.

    Else a step would see one length, the next a little less, and what an answer's length goes along
    with would drift through the epoch.
    """

    def __init__(
        self, lengths: Sequence[int], batch_size: int, seed: int, *, accumulation: int = 1
    ) -> None:
        """``batch_size``: rows that are computed at the same time, in all processes together;
        ``accumulation``: how many such batches an optimiser step has."""
        super().__init__(len(lengths), seed)
        self.lengths, self.batch_size = np.asarray(lengths), batch_size
        self.accumulation = accumulation

    def __iter__(self) -> Iterator[int]:
        draw = self._draw()
        grouped = self._grouped(draw)
        whole = len(grouped) // self.batch_size * self.batch_size
        batches = grouped[:whole].reshape(-1, self.batch_size)
        steps = self._steps(batches, draw)
        if self.epoch == 0 and steps:
            self._longest_first(steps)
        for step in steps:
            for batch in step:
                yield from batch.tolist()
        # Batches are cut off in sequence: one that is not full can only be the last.
        yield from grouped[whole:].tolist()

    def _grouped(self, draw: np.random.Generator) -> _Order:
        """All rows, in which each slice of ``batch_size`` is of like length."""
        rows = draw.permutation(self.rows)
        together = max(1, min(self.rows // (4 * self.batch_size), _MOST_BATCHES)) * self.batch_size
        parts = [rows[start : start + together] for start in range(0, self.rows, together)]
        parts = [part[np.argsort(-self.lengths[part], kind="stable")] for part in parts]
        grouped: _Order = np.concatenate([*parts, np.empty(0, np.int64)])
        return grouped

    def _steps(self, batches: _Order, draw: np.random.Generator) -> list[list[_Order]]:
        """The batches of each optimiser step: one out of each range of lengths."""
        by_length = np.argsort(-self.lengths[batches].sum(axis=1), kind="stable")
        ranges = [draw.permutation(part) for part in np.array_split(by_length, self.accumulation)]
        full = min(map(len, ranges))
        steps = [[part[step] for part in ranges] for step in range(full)]
        steps.append([one for part in ranges for one in part[full:]])
        return [[batches[one] for one in draw.permutation(step)] for step in steps if step]

    def _longest_first(self, steps: list[list[_Order]]) -> None:
        """What does not fit into memory fails in the first step of a training, not hours later."""
        longest = [max(int(self.lengths[batch].max()) for batch in step) for step in steps]
        at = int(np.argmax(longest))
        if len(steps[at]) == len(steps[0]):  # the last step may be a short one
            steps[0], steps[at] = steps[at], steps[0]


class GroupedLengths(LikeLengths):
    """The order of earlier versions, from long to short within each stretch of the epoch: trainings
    that began with it go on with it."""

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(derive_seed(self.seed, self.epoch, "lengths"))
        yield from get_length_grouped_indices(
            self.lengths.tolist(), self.batch_size, generator=generator
        )


class Ordered:
    """In front of a trainer: rows of like length share a batch where ``lengths`` is set."""

    lengths: Sequence[int] | None = None
    """Tokens of each row; set by the caller before training."""
    batches: str = SHUFFLED
    """``prefloop.training.session.steps.SHUFFLED`` or ``GROUPED``; as ``lengths``."""

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        if self.lengths is None:
            return super()._get_train_sampler(train_dataset)  # type: ignore[misc]
        arguments = self.args  # type: ignore[attr-defined]
        size, seed = arguments.per_device_train_batch_size, arguments.data_seed
        if self.batches == GROUPED:
            return GroupedLengths(self.lengths, size, seed)
        return LikeLengths(
            self.lengths, size * processes(), seed,
            accumulation=arguments.gradient_accumulation_steps,
        )  # fmt: skip
