"""A round of DPO against TRL's DPOTrainer with its defaults, on the same pairs.

    python -m benchmarks.training [--pairs 256] [--epochs 2] [--batch 8] [--width 384] [--layers 6]

A Llama with random weights, float32 on both sides (bf16 has no use on a CPU without it); prompts of
5 to 300 words, answers of 10 to 200. Each side runs in a process of its own, whose peak memory is
measured; time is the whole call: loading, tokenising, the reference's log-probabilities, training
and saving. Ours is run with pairs in random order, as TRL has them, with pairs of like length
together (the default), and so with activations computed twice, as is TRL's default.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.models import WORDS, make_model
from prefloop.data.schemas import TRIPLE
from tests.helpers.dpo_data import triple

LEARNING_RATE, BETA = 1e-5, 0.1
OURS = ("random", "length", "recomputed")


def make_triples(path: Path, pairs: int) -> None:
    """Made-up pairs of uneven length."""
    generator = np.random.default_rng(0)

    def text(low: int, high: int, mean: float) -> str:
        length = int(np.clip(generator.lognormal(mean, 0.9), low, high))
        return " ".join(generator.choice(WORDS, length))

    rows = [
        triple(index, text(10, 200, 3.7), text(10, 200, 3.7), f"{index}: {text(5, 300, 3.2)}")
        for index in range(pairs)
    ]
    pq.write_table(pa.Table.from_pylist(rows, TRIPLE), path)


def ours(folder: Path, options: dict[str, Any], side: str) -> tuple[float, list[float]]:
    """prefloop's training: ``random``, ``length`` or ``recomputed``."""
    from prefloop.training.config import TrainConfig
    from prefloop.training.methods.dpo import Dpo
    from prefloop.training.session.fit import fit
    from prefloop.training.session.job import Job

    config = TrainConfig(
        learning_rate=LEARNING_RATE, beta=BETA, batch_size=options["batch"],
        epochs=options["epochs"], order="random" if side == "random" else "length", max_length=2048,
        gradient_checkpointing=side == "recomputed",
    )  # fmt: skip
    began = time.perf_counter()
    model, out = folder / "model", folder / side / "policy"
    result = fit(Job(model, model, (folder / "t.parquet",), out, config, seed=0), Dpo())
    return time.perf_counter() - began, [log["loss"] for log in result.history]


def theirs(folder: Path, options: dict[str, Any]) -> tuple[float, list[float]]:
    """TRL's trainer as its documentation starts it."""
    from datasets import load_dataset
    from trl import DPOConfig, DPOTrainer

    began = time.perf_counter()
    data = load_dataset("parquet", data_files=str(folder / "t.parquet"), split="train",
                        cache_dir=str(folder / "cache"))  # fmt: skip
    data = data.select_columns(["prompt", "chosen", "rejected"])
    arguments = DPOConfig(
        output_dir=str(folder / "trl"), learning_rate=LEARNING_RATE, beta=BETA,
        per_device_train_batch_size=options["batch"], num_train_epochs=options["epochs"],
        logging_steps=1, report_to="none", save_strategy="no", bf16=False, use_cpu=True,
        warmup_steps=0.1, max_length=2048, seed=0, disable_tqdm=True,
    )  # fmt: skip
    trainer = DPOTrainer(model=str(folder / "model"), args=arguments, train_dataset=data)
    trainer.train()
    losses = [log["loss"] for log in trainer.state.log_history if "loss" in log]
    return time.perf_counter() - began, losses


def main() -> None:
    """Measure the sides in turn and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=256)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--width", type=int, default=384)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--side", nargs=3, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.side:
        name, folder, options = given.side[0], Path(given.side[1]), json.loads(given.side[2])
        side = theirs(folder, options) if name == "trl" else ours(folder, options, name)
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(json.dumps({"seconds": side[0], "losses": side[1], "memory": memory}))
        return
    options = {"batch": given.batch, "epochs": given.epochs}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_model(folder / "model", given.width, given.layers)
        make_triples(folder / "t.parquet", given.pairs)
        print("| | seconds | pairs/s | peak memory | mean loss, last quarter |")
        print("| --- | --- | --- | --- | --- |")
        seconds = {}
        for side_name in ("trl", *OURS):
            command = [sys.executable, "-m", "benchmarks.training", "--side", side_name, name,
                       json.dumps(options)]  # fmt: skip
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            found = json.loads(done.stdout.splitlines()[-1])
            seconds[side_name] = found["seconds"]
            losses = found["losses"]
            last = float(np.mean(losses[-max(1, len(losses) // 4) :]))
            rate = given.pairs * given.epochs / found["seconds"]
            cells = [f"{found['seconds']:.1f}", f"{rate:.2f}", f"{found['memory']:,.0f} MiB"]
            print("|", " | ".join([side_name, *cells, f"{last:.4f}"]), "|", flush=True)
        for side_name in OURS:
            print(
                f"| **{side_name}, ratio** | **{seconds['trl'] / seconds[side_name]:.2f}** | | | |"
            )


if __name__ == "__main__":
    main()
