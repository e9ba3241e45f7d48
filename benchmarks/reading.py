"""Prompts read from a file to what a run keeps: CPU seconds and peak memory; and a finished run.

    python -m benchmarks.reading [PROMPTS ...] [--run CANDIDATES]       # default: 10000 250000

Prompts of 10 to 60 made-up words, one in fifty a near-duplicate of the one before, are read with
the defaults: near-duplicates dropped, a twentieth held out, overlaps dropped. Each size runs in a
process of its own, so that its peak memory is its own.

With --run, four given answers for each prompt are labelled by a verifier as a run, in blocks of
2,048 prompts, and what is asked of a finished run is timed, each in a process of its own and with
its start: `run` where nothing changed, `status`, `report`, `agreement`, `queue`.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks.memory import peak_mib

PER_PROMPT = 4


def write_prompts(path: Path, rows: int, *, answers: int = 0) -> None:
    """``rows`` prompts, each with ``answers`` rated answers, as JSON lines."""
    draw = random.Random(0)
    letters = "abcdefghijklmnopqrstuvwxyz"
    words = ["".join(draw.choices(letters, k=draw.randrange(3, 9))) for _ in range(5000)]
    text = ""
    with path.open("w", encoding="utf-8") as file:
        for row in range(rows):
            again = row % 50 == 49
            text = f"{text} please" if again else " ".join(draw.choices(words, k=10 + row % 50))
            fields: dict[str, object] = {"prompt": text}
            if answers:
                said = [" ".join(draw.choices(words, k=draw.randrange(8, 80))) for _ in range(4)]
                fields |= {"generations": said, "ratings": [draw.random() for _ in said]}
            file.write(json.dumps(fields) + "\n")


def read(path: str) -> dict[str, float]:
    """Read the prompts in ``path``."""
    from prefloop.data.prompts.load import load_prompts
    from prefloop.pipeline.config import validate_config

    labelers = {"labelers": [{"type": "verifier"}]}
    config = validate_config({"prompts": {"train": {"path": path}}, "label": labelers}, "benchmark")
    before, cpu = peak_mib(), time.process_time()
    tables = load_prompts(config.prompts, seed=0)
    return {"cpu": time.process_time() - cpu, "mib": peak_mib() - before, "kept": len(tables.train)}


def finished(folder: Path, what: str) -> dict[str, float]:
    """One command on the finished run in ``folder``, with Python's start and all imports."""
    import prefloop

    commands: dict[str, Callable[[], object]] = {
        "run": lambda: prefloop.run(folder / "config.yaml"),
        "status": lambda: prefloop.status(folder),
        "report": lambda: prefloop.report(folder),
        "agreement": lambda: prefloop.agreement(folder),
        "queue": lambda: prefloop.queue(folder, out=folder.with_name("queue.csv"), n=100),
    }
    commands[what]()
    return {"cpu": time.process_time(), "mib": peak_mib()}


def make_run(folder: Path, candidates: int) -> None:
    """Label ``candidates`` given answers."""
    import prefloop

    write_prompts(folder / "answers.jsonl", candidates // PER_PROMPT, answers=PER_PROMPT)
    judge = {"type": "verifier", "name": "length", "function": "tests.helpers.scores:length"}
    large = {"block_size": 2048}
    prefloop.label(folder / "answers.jsonl", judge, folder / "run", overrides=large)


def main() -> None:
    """Measure each size in a fresh process and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("prompts", nargs="*", type=int, default=[10_000, 250_000])
    parser.add_argument("--run", type=int, default=0, metavar="CANDIDATES")
    parser.add_argument("--measure", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        what, path = options.measure
        print(json.dumps(read(path) if what == "read" else finished(Path(path), what)))
        return
    print(f"load {os.getloadavg()[0]:.2f}")
    print(f"{'':<12} {'CPU s':>8} {'peak MiB':>9}")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for rows in options.prompts:
            write_prompts(folder / "prompts.jsonl", rows)
            report(f"{rows:,}", "read", folder / "prompts.jsonl")
        if options.run:
            make_run(folder, options.run)
            for what in ("run", "status", "report", "agreement", "queue"):
                report(what, what, folder / "run")


def report(name: str, what: str, path: Path) -> None:
    """Measure one thing in a process of its own, and print its line."""
    command = [sys.executable, "-m", "benchmarks.reading", "--measure", what, str(path)]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=True)
    found = json.loads(done.stdout.splitlines()[-1])
    print(f"{name:<12} {found['cpu']:>8.2f} {found['mib']:>9,.0f}", flush=True)


if __name__ == "__main__":
    main()
