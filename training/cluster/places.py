"""One process at a time at each place of a training, whoever began it.

A process that is killed may go on for a moment, and one that was only thought dead may wake. Who
takes its place waits until it is gone, so that no two write the same checkpoint: each holds a lock
of the operating system on a file that all of them see, which goes with its process.
"""

from __future__ import annotations

import os
import shutil
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from prefloop.training.errors import TrainingError

_WAIT_S = 120.0
"""Seconds until who holds a place is not waited for any more: longer than file servers take to
see that a machine is gone."""
_CLEAR_S = 10.0


@dataclass(frozen=True)
class Node:
    """Where a process is, for who comes next."""

    name: str
    """In the cluster."""
    is_there: Callable[[str], bool]
    """Whether the cluster has a node of a name."""


@contextmanager
def place_of(rank: int, folder: Path, node: Node, *, wait_s: float = _WAIT_S) -> Iterator[None]:
    """Have the place of process ``rank`` of the training whose places are in ``folder``, once who
    has it is gone.

    File servers may keep the lock of a machine that is gone: it does not count where the cluster
    knows of no such node any more. Raises ``TrainingError`` where the place does not become free.
    """
    holder = folder / f"{rank}.process"
    with ExitStack() as held:
        try:
            held.enter_context(FileLock(_lock_of(rank, folder)).acquire(timeout=wait_s))
        except Timeout:
            name, _, who = _read(holder).partition(" ")
            if node.is_there(name):
                raise TrainingError(
                    f"process {rank} of an earlier start of this training is at work still "
                    f"({who}): end it; the same command then goes on from the last checkpoint"
                ) from None
        here = f"{node.name} {socket.gethostname()}, PID {os.getpid()}"
        holder.write_text(here, encoding="utf-8")
        yield


def clear_places(folder: Path, *, wait_s: float = _CLEAR_S) -> None:
    """Remove ``folder`` once nobody in it has a place; it stays where somebody keeps theirs."""
    with ExitStack() as held:
        for file in folder.glob(_lock_of("*", folder).name):
            try:
                held.enter_context(FileLock(file).acquire(timeout=wait_s))
            except Timeout:
                return
        shutil.rmtree(folder, ignore_errors=True)


def _lock_of(rank: int | str, folder: Path) -> Path:
    return folder / f"{rank}.lock"


def _read(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except OSError:
        return ""
