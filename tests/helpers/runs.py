"""Small real runs on the embedded models, for tests of the whole loop."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from prefloop.pipeline.config import RunConfig, validate_config
from prefloop.pipeline.loop import run_loop
from prefloop.pipeline.run.run_dir import RunDir

JUDGE = {
    "type": "judge", "name": "judge", "judge": "pairwise_short", "model": "embedded:judge",
}  # fmt: skip
VERIFIER = {"type": "verifier", "name": "verifier"}


def small_config(**changes: Any) -> RunConfig:
    """Sixteen prompts, three samples each; ``changes`` replace whole sections."""
    raw: dict[str, Any] = {
        "seed": 3,
        "block_size": 8,
        "prompts": {
            "train": {"path": "embedded:prompts", "limit": 16},
            "heldout": {"path": "embedded:heldout", "limit": 8},
        },
        "sample": {"n": 3, "max_tokens": 40},
        "label": {"labelers": [JUDGE, VERIFIER]},
        "filter": {"filters": [{"type": "identical"}, {"type": "margin", "min": 0.05}]},
    }
    return validate_config(raw | changes, "test")


def run_small(root: Path, config: RunConfig) -> RunDir:
    """Run (or resume) ``config`` in ``root``."""
    run = RunDir(root)
    asyncio.run(run_loop(config, run))
    return run


def dataset_rows(run: RunDir) -> dict[str, list[dict[str, Any]]]:
    """Every row of every dataset file, by file name."""
    files = sorted((run.dataset / "data").glob("*.parquet"))
    return {path.name: pq.read_table(path).to_pylist() for path in files}
