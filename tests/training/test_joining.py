"""Ray clusters joined by one process, one after the other."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.helpers.paths import ROOT

pytestmark = pytest.mark.slow

SCRIPT = """
from tests.pipeline.executors.ray_cluster import ray_cluster
import ray
from prefloop.training.cluster.joining import join_cluster

class One:
    def two(self):
        return 2

def asked(address):
    assert join_cluster(address, "executor.address")
    assert not join_cluster(address, "executor.address")
    print(ray.get(ray.remote(num_cpus=0)(One).remote().two.remote(), timeout=120))
    ray.shutdown()

asked("local")
with ray_cluster(1) as cluster:
    asked(cluster.address)
asked("local")
"""


def test_a_process_that_had_a_cluster_of_its_own_can_join_another() -> None:
    pytest.importorskip("ray", reason="Ray is not installed")
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        capture_output=True, text=True, cwd=ROOT, timeout=500, check=False,
    )  # fmt: skip
    assert done.stdout.split() == ["2", "2", "2"], done.stderr
