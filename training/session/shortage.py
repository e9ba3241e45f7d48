"""A disk that fills up while weights are written, or a memory that does not hold a training, in one
line."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from prefloop.training.errors import TrainingError

_FULL = ("no space left", "os error 28", "disk quota exceeded", "os error 122")
# What torch says of a file that it could not write, whatever the reason.
_TORCH = ("pytorchstreamwriter failed", "unexpected pos", "failed writing file")

# What torch says of the CPU's memory, for which it has no error of its own.
_MEMORY_OF_CPU = ("can't allocate memory", "not enough memory", "cannot allocate memory")


@contextmanager
def full_disk_is_named(folder: Path) -> Iterator[None]:
    """Raise ``TrainingError`` where the disk of ``folder`` is full: libraries raise errors of their
    own for that."""
    try:
        yield
    except TrainingError:
        raise
    except Exception as error:
        if not _is_full(error):
            raise
        raise TrainingError(
            f"{folder}: the disk is full, weights could not be written: make room or train into "
            "another folder; the same command then goes on from here"
        ) from error


def _is_full(error: Exception) -> bool:
    if isinstance(error, OSError):
        return error.errno in (errno.ENOSPC, errno.EDQUOT)
    text = str(error).casefold()
    if any(words in text for words in _FULL):
        return True
    return isinstance(error, RuntimeError) and any(words in text for words in _TORCH)


@contextmanager
def full_memory_is_named(out: Path) -> Iterator[None]:
    """Raise ``TrainingError`` where a training that makes ``out`` runs out of memory."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not _is_memory(error):
            raise
        raise TrainingError(
            f"{out}: out of memory while training: set train.gradient_checkpointing: true, a "
            "smaller train.batch_size (and more train.gradient_accumulation), a smaller "
            "train.max_length, or train.lora; `prefloop plan` says what each of them takes"
        ) from error


def _is_memory(error: Exception) -> bool:
    import torch

    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    text = str(error).casefold()
    return any(words in text for words in _MEMORY_OF_CPU)
