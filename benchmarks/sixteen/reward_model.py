"""The reward model: trained on PandaLM's pairs, which people labelled."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from prefloop.labelers.statistics.winrate import win_rate

PANDALM = Path(__file__).parents[2] / "tests" / "public" / "pandalm" / "testset-v1.json"
HELD = 0.25
"""Share of the prompts whose pairs are measured on."""


@dataclass(frozen=True)
class RewardModel:
    """What was trained, and how often it agrees with people on prompts it has not seen."""

    folder: str
    trained_pairs: int
    held_pairs: int
    accuracy: tuple[float, float, float]
    """With its interval."""
    longer: tuple[float, float, float]
    """How often "the longer answer is better" agrees with them, with its interval."""
    seconds: float


def train_reward_model(
    out: Path, base: str, *, max_pairs: int | None, rate: float = 2e-5, source: Path = PANDALM
) -> RewardModel:
    """Train in ``out``, or read what was trained there before."""
    import prefloop

    kept = out / "result.json"
    if kept.exists():
        return RewardModel(**json.loads(kept.read_text("utf-8")))
    if not (out / "pairs").exists():
        prefloop.audit(source, fix=out / "pairs")
    train, held = _split(out)
    settings = {"learning_rate": rate, "batch_size": 4, "gradient_accumulation": 2}
    cut = {"max_length": 384, "max_pairs": max_pairs}
    model = out / "model"
    found = prefloop.train(
        train, method="reward", base=base, out=model, test=[held], overrides=settings | cut
    )
    accuracy = found.heldout
    pairs = pq.read_table(held).to_pylist()
    lengths = [[len(row[side][-1]["content"]) for side in ("chosen", "rejected")] for row in pairs]
    longer = win_rate(
        [np.sign(a - b) / 2 + 0.5 for a, b in lengths], [_key(row["prompt"]) for row in pairs]
    )
    result = RewardModel(
        folder=str(model),
        trained_pairs=found.examples,
        held_pairs=len(pairs),
        accuracy=(accuracy.value, accuracy.low, accuracy.high),
        longer=(longer.value, longer.low, longer.high),
        seconds=found.seconds,
    )
    kept.write_text(json.dumps(asdict(result)), "utf-8")
    return result


def _split(out: Path) -> tuple[Path, Path]:
    """Pairs to train on, and pairs of other prompts."""
    table = pa.concat_tables(
        pq.read_table(path) for path in sorted((out / "pairs" / "data").glob("train-*.parquet"))
    )
    held = np.array(
        [int(_key(prompt)[:8], 16) / 16**8 < HELD for prompt in table["prompt"].to_pylist()]
    )
    paths = out / "train.parquet", out / "held.parquet"
    for path, mask in zip(paths, (~held, held), strict=True):
        pq.write_table(table.filter(pa.array(mask)), path)
    return paths


def _key(prompt: object) -> str:
    return hashlib.sha256(json.dumps(prompt, sort_keys=True).encode()).hexdigest()
