"""The controlled experiment of the DPO paper at the size of the tiny policy.

    python -m benchmarks.controlled [--out DIR] [--seeds 3] [--part frontier|noise|batches]
                                    [--processes 2]

A known reward (``benchmarks.controlled.reward``), the embedded policy, the same prompts and the
same number of answers for every method, through prefloop's own loop. Prints Markdown tables and
writes ``frontier.svg``. What was run before in ``--out`` is read, so an interrupted experiment goes
on.
"""

from __future__ import annotations

import argparse
import multiprocessing
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from benchmarks.controlled.experiment import (
    Point,
    frontier,
    noise,
    small_batches,
    work,
)

PARTS = {"frontier": frontier, "noise": noise, "batches": small_batches}


def main() -> None:
    """Run the parts and print their tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs/controlled"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--part", choices=[*PARTS], action="append")
    parser.add_argument("--method", action="append", help="only these, by name")
    parser.add_argument("--processes", type=int, default=2)
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    context = multiprocessing.get_context("spawn")
    for part in given.part or PARTS:
        conditions = [c for c in PARTS[part]() if not given.method or c.method in given.method]
        tasks = [(c, seed, given.out) for seed in range(given.seeds) for c in conditions]
        with context.Pool(given.processes) as pool:
            points = [point for found in pool.imap_unordered(work, tasks) for point in found]
        print("\n".join(table(points)), flush=True)
        if part == "frontier":
            draw(points, given.out / "frontier.svg")


def table(points: Sequence[Point]) -> list[str]:
    """Means over the seeds with their standard deviations, a row a condition and round."""
    grouped: dict[tuple[str, str, int], list[Point]] = defaultdict(list)
    for point in points:
        grouped[point.method, point.strength, point.round].append(point)
    lines = [
        "| method | strength | round | KL, nats | reward | win rate | tokens | generated | pairs "
        "| right labels | largest margin | guard |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for (method, strength, index), found in sorted(grouped.items()):
        cells = [
            method, strength, str(index), _mean(p.kl for p in found),
            _mean(p.reward for p in found), _mean(p.win_rate for p in found),
            f"{np.mean([p.tokens for p in found]):.0f}",
            f"{np.mean([p.generated for p in found]):,.0f}",
            f"{np.mean([p.pairs for p in found]):.0f}",
            _mean(p.right for p in found if p.right is not None),
            _mean(p.margin for p in found if p.margin is not None),
            ", ".join(sorted({p.guard for p in found if p.guard})),
        ]  # fmt: skip
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def _mean(values: object) -> str:
    numbers = list(values)  # type: ignore[call-overload]
    if not numbers:
        return ""
    spread = f" ± {np.std(numbers, ddof=1):.3f}" if len(numbers) > 1 else ""
    return f"{np.mean(numbers):.3f}{spread}"


def draw(points: Sequence[Point], target: Path) -> None:
    """Reward over KL: a thin mark a seed, and a line through the means of a method over its
    strengths, or over the rounds of each strength where there are several."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(9, 6))
    for number, method in enumerate(sorted({point.method for point in points})):
        mine = [point for point in points if point.method == method]
        colour = f"C{number}"
        axes.scatter([p.kl for p in mine], [p.reward for p in mine], s=9, color=colour, alpha=0.4)
        for index, line in enumerate(_lines(mine)):
            label = {"label": method} if index == 0 else {}
            axes.plot(*zip(*line, strict=True), color=colour, marker="o", markersize=5, **label)
    axes.axhline(float(np.mean([p.start_reward for p in points])), color="grey", linestyle=":")
    axes.set_xscale("function", functions=(np.sqrt, np.square))
    axes.set_xticks([0, 1, 2, 5, 10, 20, 30, 50], labels=[0, 1, 2, 5, 10, 20, 30, 50])
    axes.set_xlim(left=0)
    axes.set_xlabel("KL to the starting policy, nats an answer (square-root scale)")
    axes.set_ylabel("true reward (dotted: the starting policy)")
    axes.legend(fontsize=8, loc="lower right")
    figure.tight_layout()
    figure.savefig(target, metadata={"Date": None})


def _lines(points: Sequence[Point]) -> list[list[tuple[float, float]]]:
    """(KL, reward) means along each line of a method."""
    rounds = {point.round for point in points}
    of: dict[str, dict[tuple[str, int], list[Point]]] = defaultdict(lambda: defaultdict(list))
    for point in points:
        of[point.strength if len(rounds) > 1 else ""][point.strength, point.round].append(point)
    lines = []
    for groups in of.values():
        means = [
            (
                index,
                float(np.mean([point.kl for point in found])),
                float(np.mean([point.reward for point in found])),
            )
            for (_, index), found in groups.items()
        ]
        lines.append([(kl, reward) for _, kl, reward in sorted(means)])
    return lines


if __name__ == "__main__":
    main()
