"""A real Ray cluster on this machine, and its workers to kill."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partialmethod
from typing import Any
from unittest.mock import patch

import psutil
import pytest

from prefloop.pipeline.executors.attempts import Attempts
from tests.helpers.servers import free_port

QUIET = {
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_worker_niceness": "0",
    "RAY_raylet_start_wait_time_s": "180",
    "RAY_gcs_server_request_timeout_seconds": "180",
    "RAY_worker_register_timeout_seconds": "180",
}
"""Of the environment: loopback addresses are fine, nobody is told of it, workers do not stand back
behind other tests, and a busy machine has time."""
os.environ |= QUIET  # Ray looks at it when it is imported


@contextmanager
def ray_cluster(nodes: int = 2) -> Iterator[Any]:
    """A head without CPUs, and nodes of one CPU each."""
    from ray.cluster_utils import Cluster

    cluster = Cluster()
    try:
        add_node(cluster, num_cpus=0, include_dashboard=False)
        for _ in range(nodes):
            add_node(cluster)
        yield cluster
    finally:
        cluster.shutdown()


def add_node(cluster: Any, **of_node: Any) -> None:
    """Add a node, of one CPU where nothing else is said; again where a busy machine does not come
    to it in time."""
    from ray._private.node import Node

    port = free_port()
    start = partialmethod(_start_raylet, Node.start_raylet, port)
    for left in reversed(range(4)):
        try:
            with patch.object(Node, "start_raylet", start):
                cluster.add_node(**{"num_cpus": 1, "runtime_env_agent_port": port} | of_node)
        except Exception as error:  # it has no type of its own
            if not left or "timed out during startup" not in str(error):
                raise
        else:
            return


def _start_raylet(
    node: Any, start: Callable[..., None], port: int, *settings: Any, **more: Any
) -> None:
    """Start a node's raylet, which need not wait for its agents to say where they listen: it would
    do so for 20 s, and a busy machine takes longer to start them."""
    from ray import _raylet

    where = dict.fromkeys(("dashboard_agent_listen", "metrics_agent", "metrics_export"), -1)
    for name, number in (where | {"runtime_env_agent": port}).items():
        _raylet.persist_port(node.get_session_dir_path(), node._node_id, f"{name}_port", number)
    start(node, *settings, **more)


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


def tries_of_stages(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many tries each stage took that ends from now on, in their order."""
    tries: list[int] = []
    end = Attempts.end

    def counted(attempts: Attempts) -> None:
        tries.append(sum(len(list(one.iterdir())) for one in attempts.folder.iterdir()))
        end(attempts)

    monkeypatch.setattr(Attempts, "end", counted)
    return tries


def until(is_so: Callable[[], bool], seconds: float = 60) -> bool:
    """Whether ``is_so`` comes true in time."""
    end = time.monotonic() + seconds
    while not is_so():
        if time.monotonic() > end:
            return False
        time.sleep(0.05)
    return True
