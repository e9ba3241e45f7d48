"""A device whose memory does not hold a training, in one line."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from prefloop.training.errors import TrainingError

# What torch says of the CPU's memory, for which it has no error of its own.
_ON_CPU = ("can't allocate memory", "not enough memory", "cannot allocate memory")


@contextmanager
def full_memory_is_named(out: Path) -> Iterator[None]:
    """Raise ``TrainingError`` where a training that makes ``out`` runs out of memory."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not _is_full(error):
            raise
        raise TrainingError(
            f"{out}: out of memory while training: set train.gradient_checkpointing: true, a "
            "smaller train.batch_size (and more train.gradient_accumulation), a smaller "
            "train.max_length, or train.lora; `prefloop plan` says what each of them takes"
        ) from error


def _is_full(error: Exception) -> bool:
    import torch

    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    text = str(error).casefold()
    return any(words in text for words in _ON_CPU)
