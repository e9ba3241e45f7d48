"""Votes a second of a judge that always takes as long: in this process, and by Ray workers.

    python -m benchmarks.executors [--blocks 64] [--block 16] [--latency 0.1] [--connections 16]
                                   [--workers 1 2] [--address cluster] [--repeats 1]

Made-up answers, all pairs of which are judged in both orders by the shipped judge ``pairwise``, at
the defaults of a run. The server is another process that answers each request after ``--latency``
seconds; it is asked ``--connections`` requests at once by this process, and by each worker of a
cluster whose nodes have one CPU each. With ``--address local`` the workers are processes of this
machine, as ``executor: {type: ray, address: local, workers: 2}`` starts them: with ``--latency 0``
these are several clients of a server that answers at once. The first quarter of the blocks is not
counted: workers begin within it. ``driver`` is the processor time of the process that hands out the
blocks, Ray's threads in it included; ``start`` the seconds until the first block came. Each figure
is from a process and a cluster of its own.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.judge_client import PER_PROMPT, Answering
from benchmarks.scale import make_up
from prefloop.pipeline.executors.block_task import (
    BlockFacts,
    BlockJob,
    Executor,
    Keep,
    OpenJob,
    Take,
)
from prefloop.pipeline.run.context import RunContext
from prefloop.pipeline.run.run_dir import RunDir


class Slow(Answering):
    """Answers after a while."""

    latency = 0.0

    def say(self, data: bytes) -> None:
        """See ``Answering``."""
        asyncio.get_running_loop().call_later(self.latency, super().say, data)


async def serve(latency: float) -> None:
    """Answer until killed; the port is printed first."""
    Slow.latency = latency
    server = await asyncio.get_running_loop().create_server(Slow, "127.0.0.1", 0, backlog=4096)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


@contextmanager
def slow_server(latency: float) -> Iterator[str]:
    """The server in a process of its own; its base URL."""
    command = [sys.executable, "-m", "benchmarks.executors", "--serve", str(latency)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            yield f"http://127.0.0.1:{process.stdout.readline().strip()}/v1"
        finally:
            process.kill()


@dataclass
class Timed:
    """An executor that remembers when each block came, and how much processor time had gone."""

    by: Executor
    came: list[tuple[float, float]]

    async def open(self, job: BlockJob) -> OpenJob:
        """See ``Executor``."""
        return TimedJob(await self.by.open(job), self.came)

    @property
    def shares_files(self) -> bool:
        """See ``Executor``."""
        return self.by.shares_files

    async def aclose(self) -> None:
        """See ``Executor``."""
        await self.by.aclose()


@dataclass
class TimedJob:
    """See :class:`Timed`."""

    job: OpenJob
    came: list[tuple[float, float]]

    async def run(self, blocks: Sequence[int], *, begin: Callable[[int], None], take: Take) -> None:
        """See ``OpenJob``."""

        async def timed(facts: BlockFacts, keep: Keep) -> None:
            await take(facts, keep)
            self.came.append((time.perf_counter(), time.process_time()))

        await self.job.run(blocks, begin=begin, take=timed)


@contextmanager
def cluster_of(nodes: int) -> Iterator[Any]:
    """A head without CPUs, and nodes of one."""
    os.environ |= {
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        "RAY_USAGE_STATS_ENABLED": "0",
        # Ray's default is 15: beside other work, workers would be slower than this process.
        "RAY_worker_niceness": "0",
    }
    from ray.cluster_utils import Cluster

    head = {"num_cpus": 0, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    try:
        for _ in range(nodes):
            cluster.add_node(num_cpus=1)
        yield cluster
    finally:
        cluster.shutdown()


@contextmanager
def place_of(workers: int, address: str) -> Iterator[dict[str, Any]]:
    """The section ``executor`` of a config for so many workers; 0 are this process."""
    if not workers:
        yield {}
    elif address == "local":
        yield {"type": "ray", "address": "local", "workers": workers}
    else:
        with cluster_of(workers) as cluster:
            yield {"type": "ray", "address": cluster.address}


def measure(
    folder: str, url: str, connections: int, workers: int, address: str
) -> dict[str, float]:
    """Label what lies in ``folder``, by ``workers`` or, for 0, in this process."""
    from prefloop.pipeline.config import validate_config
    from prefloop.pipeline.run.models import Models
    from prefloop.pipeline.stages.label import label_round
    from prefloop.pipeline.work import executor_of

    run = RunDir(Path(folder))
    with place_of(workers, address) as executor:
        config = validate_config(
            {
                "run_dir": folder,
                "prompts": {"train": {"path": "made-up.jsonl"}},
                "engines": {
                    "default": {"type": "transformers"},
                    "judges": {"type": "openai", "base_url": url, "max_concurrency": connections},
                },
                "label": {"labelers": [{"type": "judge", "model": "judge", "engine": "judges"}]},
                "executor": executor,
            },
            "benchmark",
        )

        async def go() -> list[tuple[float, float]]:
            models = Models(config, cache=run.cache)
            timed = Timed(executor_of(config, run, models), [])
            context = replace(RunContext.of(config, run).round(0), executor=timed)
            timed.came.append((time.perf_counter(), time.process_time()))
            try:
                await label_round(
                    context, config.label, lambda: models.labelers(config.label.labelers)
                )
            finally:
                await timed.aclose()
                await models.release()
            return timed.came

        begin, *came = asyncio.run(go())
    votes = run.round(0).votes.rows()
    first = max(len(came) // 4, 1) - 1
    counted = len(came) - 1 - first
    seconds, cpu = (came[-1][at] - came[first][at] for at in (0, 1))
    return {
        "rate": votes / len(came) * counted / seconds,
        "driver": 1000 * cpu / counted,
        "start": came[0][0] - begin[0],
    }


def once(options: argparse.Namespace, url: str, workers: int) -> dict[str, float]:
    """One measurement, in a process and a run directory of its own."""
    with tempfile.TemporaryDirectory() as folder:
        run = RunDir(Path(folder))
        make_up(run, options.blocks * options.block * PER_PROMPT, options.block)
        run.round(0).votes.remove()
        told = json.dumps([folder, url, options.connections, workers, options.address])
        command = [sys.executable, "-m", "benchmarks.executors", "--measure", told]
        done = subprocess.run(command, stdout=subprocess.PIPE, check=True)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def main() -> None:
    """Measure this process, and each number of workers."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--blocks", type=int, default=64)
    parser.add_argument("--block", type=int, default=16, help="prompts in a block")
    parser.add_argument("--latency", type=float, default=0.1)
    parser.add_argument("--connections", type=int, default=16)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--address", default="cluster", choices=["cluster", "local"])
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--serve", type=float, help=argparse.SUPPRESS)
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve is not None:
        asyncio.run(serve(options.serve))
        return
    if options.measure:
        print(json.dumps(measure(*json.loads(options.measure))))
        return
    print(f"load {os.getloadavg()[0]:.2f}")
    print(f"{'where':<12} {'votes/s':>10} {'of local':>9} {'driver ms/block':>16} {'start s':>8}")
    with slow_server(options.latency) as url:
        # In turn, so that what else the machine does meets all of them.
        found = [
            {workers: once(options, url, workers) for workers in (0, *options.workers)}
            for _ in range(options.repeats)
        ]
    for workers in found[0]:
        rate, driver, start = (
            statistics.median(each[workers][name] for each in found)
            for name in ("rate", "driver", "start")
        )
        local = statistics.median(each[0]["rate"] for each in found)
        where = f"{workers} worker{'s' if workers > 1 else ''}" if workers else "local"
        print(f"{where:<12} {rate:>10,.0f} {rate / local:>9.2f} {driver:>16.1f} {start:>8.1f}")


if __name__ == "__main__":
    main()
