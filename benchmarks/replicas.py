"""One process of the transformers engine against several, on the same cores.

    python -m benchmarks.replicas [--prompts 128] [--n 4] [--max-tokens 96] [--repeats 3]
                                  [--replicas 2] [--width 256] [--layers 4] [--model FOLDER]

The whole sample stage with each: prompts read from shards, candidates merged and written as
Parquet. One process has all cores for its threads, or with `1 thread` one of them; several share
the cores out. Models are loaded and warm before the clock runs. Without --model, a Llama with
random weights of the given size is made. The load of the machine before each measurement is printed
with it.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.models import make_model
from benchmarks.sampling import make_prompts


def config_of(folder: Path, engine: dict[str, Any], options: argparse.Namespace) -> Any:
    """The run's config."""
    from prefloop.pipeline.config import validate_config

    return validate_config(
        {
            "run_dir": str(folder / "run"),
            "policy": options.model,
            "block_size": 16,
            "engines": {"default": {"type": "transformers", **engine}},
            "prompts": {
                "train": {"path": str(folder / "prompts.jsonl")},
                "heldout_share": 0.0,
                "near_duplicates": {"enabled": False},
            },
            "sample": {"n": options.n, "max_tokens": options.max_tokens},
            "label": {"labelers": [{"type": "verifier", "name": "none"}]},
        },
        "benchmark",
    )


async def rate(folder: Path, engine: dict[str, Any], options: argparse.Namespace) -> float:
    """Tokens/s of the sample stage."""
    from prefloop.pipeline.loop import take_up
    from prefloop.pipeline.run.run_dir import RunDir
    from prefloop.pipeline.stages.prompts import draw_prompts
    from prefloop.pipeline.stages.sample import (
        Draw,
        open_source,
        sample_block,
        sample_round,
        sampling_of,
    )

    config = config_of(folder, engine, options)
    run = RunDir(Path(config.run_dir))
    config, models, whole = take_up(config, run)
    context = whole.round(0)
    blocks = draw_prompts(context, per_round=None, per_leg=None, block_size=config.block_size)
    source = await open_source(config.sample.members()[0], models)
    warm = Draw([source], config.sample.n, sampling_of(config.sample), None, ("warm",))
    some = run.prompts.read(0).slice(0, 4)
    await asyncio.gather(
        *(sample_block(some, warm, 0, f"warm {at}") for at in range(2 * options.replicas))
    )
    began = time.perf_counter()
    await sample_round(context, config.sample, models, blocks)
    seconds = time.perf_counter() - began
    await models.release()
    table = run.round(0).candidates.table(["tokens", "copies"])
    return float(np.dot(table["tokens"], table["copies"])) / seconds


def main() -> None:
    """Measure each in turn, several times, and print medians and their ratio to one process."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--prompts", type=int, default=128)
    parser.add_argument("--n", type=int, default=4)
    parser.add_argument("--max-tokens", type=int, default=96)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--replicas", type=int, default=2)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--model", default="")
    options = parser.parse_args()
    kinds: dict[str, dict[str, Any]] = {
        "1 process": {},
        "1 process, 1 thread": {"threads": 1},
        f"{options.replicas} processes": {"replicas": options.replicas},
    }
    rates: dict[str, list[float]] = {kind: [] for kind in kinds}
    with tempfile.TemporaryDirectory() as base:
        if not options.model:
            options.model = str(Path(base) / "model")
            make_model(Path(options.model), options.width, options.layers)
        for repeat in range(options.repeats):
            for kind, engine in kinds.items():
                folder = Path(base) / f"{kind}-{repeat}"
                folder.mkdir()
                make_prompts(folder / "prompts.jsonl", options.prompts)
                load = os.getloadavg()[0]
                rates[kind].append(asyncio.run(rate(folder, engine, options)))
                print(
                    f"{kind}: {rates[kind][-1]:,.0f} tokens/s (load before: {load:.1f})", flush=True
                )
    alone = statistics.median(rates["1 process"])
    for kind, found in rates.items():
        median = statistics.median(found)
        print(f"{kind}: median {median:,.0f} tokens/s, {median / alone:.2f} of one process")


if __name__ == "__main__":
    main()
