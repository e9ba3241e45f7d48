"""Sampling through the pipeline against raw vLLM `generate`, on identical requests.

    python -m benchmarks.sampling [--prompts 256] [--n 4] [--max-tokens 96] [--repeats 3]
                                  [--width 512] [--layers 8] [--model FOLDER]

The same token ids, seeds and sampling parameters, prompts of uneven length. Each side runs in a
process of its own, with the same vLLM engine arguments; start-up is not timed and a small batch
warms both up. Ours is the whole sample stage: prompts read from shards, candidates merged and
written as Parquet. Without --model, a Llama with random weights of the given size is made.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.models import WORDS, make_model


def make_prompts(path: Path, count: int) -> None:
    """Prompts of 5 to 300 words, most of them short."""
    generator = np.random.default_rng(0)
    lengths = np.clip(generator.lognormal(3.2, 1.0, count), 5, 300).astype(int)
    rows = [
        {"prompt": f"Write about item {i}: " + " ".join(generator.choice(WORDS, length))}
        for i, length in enumerate(lengths)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def config_of(folder: Path, options: argparse.Namespace) -> Any:
    """The run's config; both sides take their requests from it."""
    from prefloop.pipeline.config import validate_config

    return validate_config(
        {
            "run_dir": str(folder / "run"),
            "policy": options.model,
            "engines": {"default": {"type": "vllm"}},
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


def ours(folder: Path, options: argparse.Namespace) -> dict[str, float]:
    """Tokens/s of the sample stage."""
    from prefloop.pipeline.run.context import RunContext
    from prefloop.pipeline.run.models import Models
    from prefloop.pipeline.run.run_dir import RunDir
    from prefloop.pipeline.stages.prompts import draw_prompts, read_prompts
    from prefloop.pipeline.stages.sample import (
        Draw,
        open_source,
        sample_block,
        sample_round,
        sampling_of,
    )

    config = config_of(folder, options)
    run = RunDir(Path(config.run_dir))
    context = RunContext.of(config, run).round(0)
    read_prompts(context, config.prompts, block_size=config.block_size)
    blocks = draw_prompts(context, per_round=None, per_leg=None, block_size=config.block_size)

    async def measure() -> float:
        models = Models(config)
        source = await open_source(config.sample.members()[0], models)
        warm = Draw([source], config.sample.n, sampling_of(config.sample), None, ("warm",))
        await sample_block(run.prompts.read(0).slice(0, 16), warm, 0, "warm")
        began = time.perf_counter()
        await sample_round(context, config.sample, models, blocks)
        seconds = time.perf_counter() - began
        await models.release()
        return seconds

    seconds = asyncio.run(measure())
    table = run.round(0).candidates.table(["tokens", "copies"])
    tokens = int(np.dot(table["tokens"], table["copies"]))
    return {"tokens": tokens, "seconds": seconds}


def raw(folder: Path, options: argparse.Namespace) -> dict[str, float]:
    """Tokens/s of `LLM.generate` on the requests that our sample stage would make."""
    from transformers import AutoTokenizer
    from vllm import LLM, SamplingParams, TokensPrompt

    from prefloop.data.conversations.chat import render_tokens
    from prefloop.data.hashing import derive_seed
    from prefloop.pipeline.engines.vllm_engine import _engine_args
    from prefloop.pipeline.run.context import RunContext
    from prefloop.pipeline.run.run_dir import RunDir
    from prefloop.pipeline.stages.prompts import read_prompts

    config = config_of(folder, options)
    run = RunDir(Path(config.run_dir))
    read_prompts(RunContext.of(config, run), config.prompts, block_size=config.block_size)
    tokenizer = AutoTokenizer.from_pretrained(options.model)
    llm = LLM(model=options.model, **_engine_args(config.engines["default"], options.model))
    prompts, parameters = [], []
    for row in run.prompts.table(["prompt_id", "messages"]).to_pylist():
        ids = render_tokens(tokenizer, row["messages"])
        for index in range(config.sample.n):
            prompts.append(TokensPrompt(prompt_token_ids=ids))
            seed = derive_seed(config.seed, "sample", 0, row["prompt_id"], index)
            parameters.append(
                SamplingParams(
                    temperature=1.0, max_tokens=config.sample.max_tokens, seed=seed, logprobs=0
                )
            )
    llm.generate(prompts[:64], parameters[:64], use_tqdm=False)
    llm.reset_prefix_cache()
    began = time.perf_counter()
    outputs = llm.generate(prompts, parameters, use_tqdm=False)
    seconds = time.perf_counter() - began
    return {"tokens": sum(len(o.outputs[0].token_ids) for o in outputs), "seconds": seconds}


def main() -> None:
    """Run both sides in turn, several times, and print medians and their ratio."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--prompts", type=int, default=256)
    parser.add_argument("--n", type=int, default=4)
    parser.add_argument("--max-tokens", type=int, default=96)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--model", default="")
    parser.add_argument("--side", choices=["ours", "raw"], help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        found = (ours if options.side == "ours" else raw)(options.folder, options)
        print("FOUND", json.dumps(found), flush=True)
        return
    rates: dict[str, list[float]] = {"raw": [], "ours": []}
    with tempfile.TemporaryDirectory() as base:
        if not options.model:
            options.model = str(Path(base) / "model")
            make_model(Path(options.model), options.width, options.layers)
        for repeat in range(options.repeats):
            for side in rates:
                folder = Path(base) / f"{side}-{repeat}"
                folder.mkdir()
                make_prompts(folder / "prompts.jsonl", options.prompts)
                command = [
                    sys.executable, "-m", "benchmarks.sampling", "--side", side, "--folder",
                    str(folder), "--model", options.model, "--n", str(options.n),
                    "--max-tokens", str(options.max_tokens),
                ]  # fmt: skip
                output = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
                line = next(x for x in output.stdout.splitlines() if x.startswith("FOUND"))
                found = json.loads(line.removeprefix("FOUND"))
                rates[side].append(found["tokens"] / found["seconds"])
                rate = rates[side][-1]
                print(f"{side}: {found['tokens']} tokens, {rate:,.0f} tokens/s", flush=True)
    medians = {side: statistics.median(found) for side, found in rates.items()}
    print(
        f"median of {options.repeats}: raw vLLM {medians['raw']:,.0f} tokens/s, "
        f"prefloop {medians['ours']:,.0f} tokens/s, ratio {medians['ours'] / medians['raw']:.3f}"
    )


if __name__ == "__main__":
    main()
