"""A real Ray cluster on this machine, and its workers to kill."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import psutil

QUIET = {
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_worker_niceness": "0",
}
"""Of the environment: loopback addresses are fine, nobody is told of it, and workers do not stand
back behind other tests."""


@contextmanager
def ray_cluster(nodes: int = 2) -> Iterator[Any]:
    """A head without CPUs, and nodes of one CPU each."""
    from ray.cluster_utils import Cluster

    os.environ |= QUIET
    cluster = Cluster()
    try:
        _started(lambda: cluster.add_node(num_cpus=0, include_dashboard=False))
        for _ in range(nodes):
            _started(lambda: cluster.add_node(num_cpus=1))
        yield cluster
    finally:
        cluster.shutdown()


def _started(node: Callable[[], Any]) -> None:
    """Start a node; again where a busy machine does not come to it within Ray's own 30 s."""
    for left in reversed(range(4)):
        try:
            node()
        except Exception as error:  # it has no type of its own
            if not left or "timed out during startup" not in str(error):
                raise
        else:
            return


def workers() -> list[psutil.Process]:
    """The processes that work on blocks, of clusters that this process began."""
    found = []
    for process in psutil.Process().children(recursive=True):
        try:
            if process.cmdline()[:1] and "BlockWorker" in process.cmdline()[0]:
                found.append(process)
        except psutil.Error:
            continue
    return found


def kill(process: psutil.Process) -> None:
    """kill -9, and wait for it."""
    try:
        process.send_signal(signal.SIGKILL)
        process.wait(10)
    except psutil.Error:
        pass


def until(is_so: Callable[[], bool], seconds: float = 60) -> bool:
    """Whether ``is_so`` comes true in time."""
    end = time.monotonic() + seconds
    while not is_so():
        if time.monotonic() > end:
            return False
        time.sleep(0.05)
    return True
