"""How many CPU threads torch computes with, said for one thread of this process at a time.

``torch.set_num_threads`` holds for the calling thread, and for each that computes for the first
time after it; those that computed before keep their number. Sums of another number of threads
differ in their last bits, so what one engine was told would decide, by who came first, what others
compute, and a run that goes on after a kill would not be the one that went through.

Imports torch inside functions only.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

_TELLING = threading.Lock()


def compute_with(threads: int | None) -> None:
    """Have the calling thread compute with so many from now on; null: with as many as this process
    takes by itself. All others are left as they are, those to come too."""
    import torch

    with _TELLING, ThreadPoolExecutor(1) as fresh:
        usual = fresh.submit(torch.get_num_threads).result()
        torch.get_num_threads()  # the first look of a thread has it take the process's number
        torch.set_num_threads(threads or usual)
        fresh.submit(torch.set_num_threads, usual).result()


@contextmanager
def computing_with(threads: int | None) -> Iterator[None]:
    """The same until the block ends."""
    import torch

    before = torch.get_num_threads()
    compute_with(threads)
    try:
        yield
    finally:
        compute_with(before)
