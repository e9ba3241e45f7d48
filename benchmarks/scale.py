"""Candidates through pairing, deciding, filtering and writing: rows per second and peak memory.

    python -m benchmarks.scale [ROWS ...] [--blocks 64 2048]     # default: 10000 100000 1000000

By the default of `block_size`, and by one that is as large as the files. What it takes to put small
blocks together, at the end of the stages that made them, stands apart. Each size runs in a process
of its own, so that its peak memory is its own. Candidates and the votes of one verifier are made up
beforehand (not timed): four answers of 40 to 400 characters for each prompt, three in a hundred of
them cut and as many like the one before but for case; one vote in twenty is a tie.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from benchmarks.memory import peak_mib
from prefloop.data.hashing import content_id
from prefloop.data.schemas import CANDIDATE, PROMPT, VOTE
from prefloop.labelers.decisions.pairs import propose_pairs
from prefloop.pipeline.config import RunConfig, validate_config
from prefloop.pipeline.run.context import RoundContext, RunContext
from prefloop.pipeline.run.run_dir import RunDir
from prefloop.pipeline.run.spans import put_together
from prefloop.pipeline.stages.filter import filter_round
from prefloop.pipeline.stages.write import write_round

PER_PROMPT = 4
BLOCK = 64
"""The default of ``block_size``."""
LARGE = 2048
MAX_RATIO, MIN_MARGIN, MAX_SHARE_LONGER = 3.0, 0.1, 0.5
"""Of the filters."""
WORDS = np.array(
    [
        "amber",
        "birch",
        "cedar",
        "dune",
        "ember",
        "fern",
        "grove",
        "heath",
        "iris",
        "juniper",
        "kelp",
        "larch",
    ]
)


def settings() -> RunConfig:
    """The config that is measured: all pairs labelled, several filters, the balance included."""
    return validate_config(
        {
            "prompts": {"train": {"path": "made-up.jsonl"}},
            "label": {"labelers": [{"type": "verifier", "name": "verifier"}]},
            "filter": {
                "strategy": {"type": "best_vs_worst"},
                "filters": [
                    {"type": "identical"},
                    {"type": "truncated"},
                    {"type": "length_ratio", "max": MAX_RATIO},
                    {"type": "margin", "min": MIN_MARGIN},
                    {"type": "length_balance", "max_share_longer": MAX_SHARE_LONGER},
                ],
            },
        },
        "benchmark",
    )


def make_up(run: RunDir, rows: int, block: int = BLOCK) -> None:
    """Write prompt, candidate and vote shards of ``rows`` candidates."""
    generator = np.random.default_rng(0)
    folder = run.round(0)
    prompts = rows // PER_PROMPT
    for index, start in enumerate(range(0, prompts, block)):
        names = [content_id("prompt", i) for i in range(start, min(start + block, prompts))]
        messages = [[{"role": "user", "content": f"Write about {name}."}] for name in names]
        asked = {
            "prompt_id": names, "messages": messages, "metadata": ["{}"] * len(names),
            "source": ["made-up"] * len(names), "row": list(range(len(names))),
        }  # fmt: skip
        folder.prompts.write(index, made_of(asked, len(names), PROMPT))
        count = len(names) * PER_PROMPT
        owners = [name for name in names for _ in range(PER_PROMPT)]
        lengths = generator.integers(8, 80, count)
        texts = [" ".join(WORDS[generator.integers(0, len(WORDS), size)]) for size in lengths]
        for row in np.flatnonzero(generator.random(count - 1) < 0.03):
            texts[row + 1] = texts[row].upper()
        reasons = np.where(generator.random(count) < 0.03, "length", "stop")
        ids = [content_id(o, i, t) for i, (o, t) in enumerate(zip(owners, texts, strict=True))]
        columns = {
            "candidate_id": ids, "prompt_id": owners, "round": [0] * count,
            "sample_index": list(range(PER_PROMPT)) * len(names), "text": texts,
            "tokens": lengths, "finish_reason": reasons, "logprob": -lengths.astype(float),
            "origin": ["sampled"] * count, "policy": ["policy"] * count,
            "policy_revision": ["made-up"] * count, "seed": [0] * count, "copies": [1] * count,
            "prompt_tokens": [8] * count, "cost": [0.0] * count,
        }  # fmt: skip
        candidates = made_of(columns, count, CANDIDATE)
        folder.candidates.write(index, candidates)
        score = dict(zip(ids, generator.integers(0, 20, count) / 19, strict=True))
        pairs = propose_pairs(candidates, per_prompt=None, seed=0)
        a, b = pairs["a_id"].to_pylist(), pairs["b_id"].to_pylist()
        score_a, score_b = (np.array([score[i] for i in side]) for side in (a, b))
        n = len(pairs)
        votes = {
            "pair_id": pairs["pair_id"], "prompt_id": pairs["prompt_id"], "round": [0] * n,
            "a_id": a, "b_id": b, "labeler": ["verifier"] * n, "order": ["none"] * n,
            "preference": np.array(["b", "tie", "a"])[np.sign(score_a - score_b).astype(int) + 1],
            "p_a": (1 + np.sign(score_a - score_b)) / 2, "score_a": score_a, "score_b": score_b,
            "prompt_tokens": [0] * n, "completion_tokens": [0] * n, "cost": [0.0] * n,
        }  # fmt: skip
        folder.votes.write(index, made_of(votes, n, VOTE))
    put_together(folder, folder.prompts)


def made_of(columns: dict[str, Any], rows: int, schema: pa.Schema) -> pa.Table:
    """A table of ``columns``; the others of ``schema`` are null."""
    empty = pa.nulls(rows)
    return pa.table(
        {field.name: pa.array(columns.get(field.name, empty), field.type) for field in schema},
        schema=schema,
    )


async def filter_and_write(config: RunConfig, context: RoundContext) -> None:
    """Decide a round's pairs and write its part of the dataset."""
    await filter_round(context, config.label, config.filter)
    await write_round(context, test_share=config.write.test_share, unpaired=config.writes_unpaired)


def measure(folder: Path) -> dict[str, float]:
    """Put the blocks in ``folder`` together that ``make_up`` left there, then filter and write:
    processor seconds of both, and peak MiB of the process."""
    config, run = settings(), RunDir(folder)
    context = RunContext.of(config, run).round(0)
    began = time.process_time()
    for shards in (context.folder.candidates, context.folder.votes):
        put_together(context.folder, shards)
    together = time.process_time() - began
    began = time.process_time()
    asyncio.run(filter_and_write(config, context))
    seconds = time.process_time() - began
    files = sum(len(list(path.glob("part-*"))) for path in (folder / "round-000").iterdir())
    return {
        "together": together,
        "seconds": seconds,
        "peak_mib": peak_mib(),
        "files": files,
        "triples": context.folder.triples.rows(),
    }


def main() -> None:
    """Measure each size in a fresh process and print a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("rows", nargs="*", type=int, default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--blocks", nargs="+", type=int, default=[BLOCK, LARGE])
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        print(json.dumps(measure(arguments.measure)))
        return
    print(
        "| candidates | `block_size` | put together, CPU s | filtered and written, CPU s | "
        "candidates/CPU s | peak memory | files | triples |\n" + "| --- " * 8 + "|"
    )
    for rows, block in itertools.product(arguments.rows, arguments.blocks):
        with tempfile.TemporaryDirectory() as folder:
            make_up(RunDir(Path(folder)), rows, block)
            output = subprocess.run(
                [sys.executable, "-m", "benchmarks.scale", "--measure", folder],
                stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=True,
            ).stdout  # fmt: skip
        found = json.loads(output)
        print(
            f"| {rows:,} | {block:,} | {found['together']:.2f} | {found['seconds']:.2f} "
            f"| {rows / found['seconds']:,.0f} | {found['peak_mib']:,.0f} MiB "
            f"| {found['files']:,} | {found['triples']:,} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
