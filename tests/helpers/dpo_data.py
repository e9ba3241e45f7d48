"""Triples for the training tests: chosen answers end with an exclamation mark."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from prefloop.data import schemas

WORDS = ["fox", "lantern", "dog", "quick", "wizard", "lazy", "sentence", "answer"]


def triple(index: int, chosen: str, rejected: str, prompt: str | None = None) -> dict[str, Any]:
    """One row of ``schemas.TRIPLE``."""
    return {
        "prompt": [{"role": "user", "content": prompt or f"Write one sentence. {index}"}],
        "chosen": [{"role": "assistant", "content": chosen}],
        "rejected": [{"role": "assistant", "content": rejected}],
        "prompt_id": f"{index:032x}",
        "chosen_id": "c" * 32,
        "rejected_id": "d" * 32,
        "score_chosen": 1.0,
        "score_rejected": 0.0,
        "margin": 1.0,
        "p_chosen": 1.0,
        "agreement": 1.0,
        "chosen_tokens": 1,
        "rejected_tokens": 1,
        "round": 0,
        "policy": "policy@0",
        "rejected_policy": "policy@0",
        "labelers": ["verifier"],
    }


def rows(n: int, seed: int = 0) -> list[dict[str, Any]]:
    """``n`` triples with answers of 2 to 8 words."""
    draw = random.Random(seed)

    def answer(end: str) -> str:
        return " ".join(draw.choices(WORDS, k=draw.randint(2, 8))) + end

    return [triple(index, answer("!"), answer(".")) for index in range(n)]


def write(path: Path, triples: list[dict[str, Any]]) -> Path:
    """Write a shard of triples."""
    pq.write_table(pa.Table.from_pylist(triples, schema=schemas.TRIPLE), path)
    return path
