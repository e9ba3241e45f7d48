"""What failures cost a run whose blocks are committed one by one: simulated, beside the formula.

    python -m benchmarks.failures [--workers 64] [--blocks 20000] [--block-s 120] [--in-flight 2]
                                  [--restart-s 180] [--mtbf-h 1000 100 24 4 1] [--seed 0]

Each worker computes some blocks side by side and is lost at random, on average once in --mtbf-h
hours. What it had begun is lost with it; what it had committed is not. After --restart-s another
takes its place, and the blocks are begun again by whoever is free. The formula beside it: a worker
has half a block in progress, in its own time, when it is lost, whatever the number side by side; so
block / 2 / MTBF of the work is done again, and restart / MTBF of the time is waiting.

A worker here is what dies as one: a process with its engine, a node, a spot machine. Prints a
Markdown table.
"""

from __future__ import annotations

import argparse
import heapq
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Cluster:
    """So many ``workers`` with ``in_flight`` blocks side by side each; times in seconds."""

    workers: int
    in_flight: int
    block_s: float
    restart_s: float
    mtbf_s: float


@dataclass(frozen=True)
class Lost:
    """Of a whole run: work done again as a share of all that was needed, how many workers were
    lost, and how much longer it took than without losses."""

    repeated: float
    losses: int
    longer: float


def simulate(cluster: Cluster, blocks: int, seed: int) -> Lost:
    """Run ``blocks`` to the end, loss by loss."""
    draw = np.random.default_rng(seed)
    slots = cluster.workers * cluster.in_flight
    left, wasted, losses, now = blocks, 0.0, 0, 0.0
    # (time, kind, worker, life): a worker that was lost begins another life.
    lives = [0] * cluster.workers
    down: set[int] = set()
    begun: list[list[float]] = [[] for _ in range(cluster.workers)]
    events: list[tuple[float, int, int, int]] = []
    done_at, lost_at, back_at = 0, 1, 2

    def begin(worker: int, at: float) -> None:
        nonlocal left
        while left and len(begun[worker]) < cluster.in_flight:
            left -= 1
            begun[worker].append(at)
            heapq.heappush(events, (at + cluster.block_s, done_at, worker, lives[worker]))

    for worker in range(cluster.workers):
        heapq.heappush(events, (draw.exponential(cluster.mtbf_s), lost_at, worker, 0))
    # The first blocks begin one after the other, as those of a run in full swing do.
    for index in range(min(slots, blocks)):
        worker = index % cluster.workers
        left -= 1
        at = -cluster.block_s * index / slots
        begun[worker].append(at)
        heapq.heappush(events, (at + cluster.block_s, done_at, worker, 0))
    committed = 0
    while committed < blocks:
        now, kind, worker, life = heapq.heappop(events)
        if life != lives[worker]:
            continue
        if kind == done_at:
            begun[worker].remove(min(begun[worker]))
            committed += 1
            begin(worker, now)
        elif kind == lost_at:
            losses += 1
            wasted += sum(now - at for at in begun[worker])
            left += len(begun[worker])
            begun[worker].clear()
            lives[worker] += 1
            down.add(worker)
            heapq.heappush(events, (now + cluster.restart_s, back_at, worker, lives[worker]))
        else:
            down.remove(worker)
            heapq.heappush(
                events, (now + draw.exponential(cluster.mtbf_s), lost_at, worker, lives[worker])
            )
            begin(worker, now)
        if left:  # given back by a worker that was lost: whoever is idle takes them
            for other in range(cluster.workers):
                if other not in down:
                    begin(other, now)
    needed = blocks * cluster.block_s
    return Lost(wasted / needed, losses, now / (needed / slots) - 1)


def main() -> None:
    """Simulate each time between failures, and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--workers", type=int, default=64)
    parser.add_argument("--blocks", type=int, default=20_000)
    parser.add_argument("--block-s", type=float, default=120.0)
    parser.add_argument("--in-flight", type=int, default=2)
    parser.add_argument("--restart-s", type=float, default=180.0)
    parser.add_argument("--mtbf-h", type=float, nargs="+", default=[1000, 100, 24, 4, 1])
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    print(
        f"{given.workers} workers with {given.in_flight} blocks of {given.block_s:g} s each, "
        f"{given.blocks:,} blocks, {given.restart_s:g} s until a lost worker is replaced\n\n"
        "| hours between losses of a worker | lost | work repeated | formula | longer | formula |\n"
        "| --- | --- | --- | --- | --- | --- |"
    )
    for hours in given.mtbf_h:
        mtbf = 3600 * hours
        cluster = Cluster(given.workers, given.in_flight, given.block_s, given.restart_s, mtbf)
        found = simulate(cluster, given.blocks, given.seed)
        again = given.block_s / 2 / mtbf
        print(
            f"| {hours:g} | {found.losses:,} | {found.repeated:.3%} | {again:.3%} "
            f"| {found.longer:.2%} | {again + given.restart_s / mtbf:.2%} |"
        )


if __name__ == "__main__":
    main()
