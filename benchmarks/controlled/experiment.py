"""What is compared, and one run of it through prefloop's own loop."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import sys
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from prefloop.pipeline.config import RunConfig, validate_config
from prefloop.pipeline.loop import run_loop
from prefloop.pipeline.run.run_dir import EVALUATION, TRAINING_CURVES, RunDir

PROMPTS, SAMPLES, ROUNDS = 384, 4, 3
"""Every method samples so many prompts so often in all, whether at once or in rounds or steps."""
BATCH, EPOCHS, RATE = 16, 2, 1e-3
HELDOUT = 150
BETAS = (0.03, 0.1, 0.3)
_REWARD = "benchmarks.controlled.reward:sentiment"


@dataclass(frozen=True)
class Condition:
    """One point of a method's frontier, before the seed."""

    method: str
    strength: str
    """What is varied along the frontier, as it is shown."""
    train: dict[str, Any]
    rounds: int = 1
    sample: dict[str, Any] = field(default_factory=dict)
    flipped: float = 0.0
    """Share of the votes that are turned round before they are counted."""
    labelers: int = 1
    filters: tuple[dict[str, Any], ...] = ()


@dataclass(frozen=True)
class Point:
    """What came out of one condition and seed, for the policy after ``round``."""

    method: str
    strength: str
    seed: int
    round: int
    kl: float
    reward: float
    start_reward: float
    win_rate: float
    tokens: int
    """Mean length of a held-out answer."""
    generated: int
    """Tokens sampled for training up to here."""
    pairs: int
    margin: float | None
    """Largest reward margin of a training step."""
    seconds: float
    guard: str | None = None
    right: float | None = None
    """Share of the trained pairs whose label agrees with the reward."""


def frontier() -> list[Condition]:
    """Every method at three strengths of its pull towards the reference, or its own knob."""
    offline: dict[str, Any] = {"learning_rate": RATE, "epochs": EPOCHS}
    # On-policy methods see each answer once: smaller batches give them as many steps.
    once: dict[str, Any] = {"learning_rate": RATE, "batch_size": BATCH // EPOCHS}
    found = []
    for beta in BETAS:
        name = f"beta {beta:g}"
        found += [
            Condition("offline DPO", name, {"beta": beta, **offline}),
            Condition("iterative DPO", name, {"beta": beta, **offline}, rounds=ROUNDS),
            Condition("online DPO", name, {"beta": beta, "online": True, **once}),
            Condition("IPO", name, {"loss": "ipo", "beta": beta, **offline}),
            Condition("KTO", name, {"method": "kto", "beta": beta, **offline}),
            Condition("ORPO", name, {"loss": "orpo", "beta": 10 * beta, **offline}),
        ]
    for beta in (0.5, 2.0, 8.0):
        found.append(
            Condition("SimPO", f"beta {beta:g}",
                      {"loss": "simpo", "beta": beta, "simpo_gamma": 0.5 * beta, **offline})
        )  # fmt: skip
    for beta in (0.003, 0.01, 0.03):
        rl = {"beta": beta, "reward": "score", **once}
        found += [
            Condition("GRPO", f"beta {beta:g}", {"method": "grpo", **rl}),
            Condition("RLOO", f"beta {beta:g}", {"method": "rloo", **rl}),
        ]
    for beta in (1.0, 3.0):  # down to where SFT lies
        found.append(Condition("offline DPO", f"beta {beta:g}", {"beta": beta, **offline}))
    for rate in (1e-4, 3e-4, 1e-3, 3e-3):
        found.append(
            Condition("SFT on the best", f"rate {rate:g}",
                      {"method": "sft", "learning_rate": rate, "epochs": EPOCHS})
        )  # fmt: skip
    return found


def noise() -> list[Condition]:
    """Offline DPO on flipped labels, and what is said to help. Two answers a prompt, so that no
    other pair of the prompt can outvote a flip."""
    found = []
    two = {"n": 2}
    for flipped in (0.0, 0.1, 0.2, 0.3):
        common: dict[str, Any] = {"sample": two, "flipped": flipped}
        share = f"{flipped:.0%} flipped"
        train: dict[str, Any] = {"beta": 0.1, "learning_rate": RATE, "epochs": EPOCHS}
        smooth = {**train, "label_smoothing": flipped}
        found.append(Condition("DPO", share, train, **common))
        if flipped:
            agree = ({"type": "agreement", "min": 1.0},)
            found += [
                Condition("cDPO", share, {**smooth, "loss": "cdpo"}, **common),
                Condition("robust DPO", share, {**smooth, "loss": "robust"}, **common),
                Condition("jury of three", share, train, labelers=3, **common),
                Condition("jury, all agree", share, train, labelers=3, filters=agree, **common),
            ]  # fmt: skip
    return found


def small_batches() -> list[Condition]:
    """Batch size 1 at a high learning rate, unguarded and guarded."""
    train: dict[str, Any] = {
        "beta": 0.1, "learning_rate": 1e-3, "epochs": 3, "lr_scheduler": "constant",
    }  # fmt: skip
    guarded = {"guards": {"max_margin_nats": 200.0, "then": "go_on"}}
    return [
        Condition("batch 16", "no guard", {**train, "batch_size": 16}),
        Condition("batch 1", "no guard", {**train, "batch_size": 1}),
        Condition("batch 1", "guard at 20", {**train, "batch_size": 1, **guarded}),
    ]


def config_of(condition: Condition, seed: int, *, trains: bool = True) -> RunConfig:
    """The run's config; without ``trains`` only what is sampled and labelled before training."""
    per_round = PROMPTS // condition.rounds
    names = [f"judge_{letter}" for letter in "abc"[: condition.labelers]]
    train = {
        "batch_size": BATCH,
        "order": "random",
        "guards": {"enabled": "guards" in condition.train},
        **condition.train,
    }
    if train.get("method") in ("grpo", "rloo"):
        train["batch_size"] *= SAMPLES
    raw: dict[str, Any] = {
        "seed": seed,
        "rounds": condition.rounds,
        "engines": {"default": {"type": "transformers", "threads": 1}},
        "prompts": {
            "train": {"path": "embedded:prompts"},
            "heldout": {"path": "embedded:heldout", "limit": HELDOUT},
        },
        "sample": {
            "n": SAMPLES, "max_tokens": 48, "prompts_per_round": per_round, **condition.sample,
        },
        "label": {
            "labelers": [{"type": "verifier", "name": name, "function": _REWARD} for name in names]
        },
        "filter": {
            "strategy": {"type": "best_vs_worst"},
            "filters": [{"type": "identical"}, *condition.filters],
        },
        "write": {"test_share": 0.0},
        "train": train,
        "evaluate": {"promote": "always", "samples_per_prompt": 2},
    }  # fmt: skip
    if not trains:
        raw |= {"rounds": 1, "train": None}
    return validate_config(raw, condition.method)


def run(condition: Condition, seed: int, folder: Path) -> list[Point]:
    """Run ``condition`` (once: what is in ``folder`` is read) and return a point a round."""
    name = f"{condition.method} {condition.strength} {seed}".replace(" ", "_").replace("%", "")
    kept = folder / f"{name}.json"
    if kept.exists():
        return [Point(**one) for one in json.loads(kept.read_text(encoding="utf-8"))]
    began = time.perf_counter()
    config = config_of(condition, seed)
    root = folder / name
    shutil.rmtree(root, ignore_errors=True)
    made = RunDir(root)
    if condition.flipped:
        _flip(condition, seed, root)
    asyncio.run(run_loop(config, made))
    seconds = time.perf_counter() - began
    points = [_point(condition, seed, made, index, seconds) for index in range(condition.rounds)]
    shutil.rmtree(root)
    kept.write_text(json.dumps([asdict(point) for point in points]), encoding="utf-8")
    return points


def work(task: tuple[Condition, int, Path]) -> list[Point]:
    """One condition and seed, in a process of its own thread, silent."""
    import torch

    torch.set_num_threads(1)
    condition, seed, folder = task
    with (folder / "log.txt").open("a") as log:
        os.dup2(log.fileno(), sys.stderr.fileno())
        return run(condition, seed, folder)


def _flip(condition: Condition, seed: int, root: Path) -> None:
    """Sample and label in ``root``, then turn a share of the votes round, labeler by labeler."""
    made = RunDir(root)
    asyncio.run(run_loop(config_of(condition, seed, trains=False), made))
    draw = np.random.default_rng(seed)
    folder = made.round(0)
    for index in folder.votes.indices():
        votes = folder.votes.read(index)
        flip = draw.random(len(votes)) < condition.flipped
        other = {"a": "b", "b": "a"}
        preference = [
            other.get(one, one) if turn else one
            for one, turn in zip(votes["preference"].to_pylist(), flip, strict=True)
        ]
        p_a = [
            1 - p if turn and p is not None else p
            for p, turn in zip(votes["p_a"].to_pylist(), flip, strict=True)
        ]
        for column, values in (("preference", preference), ("p_a", p_a)):
            at = votes.column_names.index(column)
            votes = votes.set_column(at, column, pa.array(values, votes.schema.field(at).type))
        folder.votes.write(index, votes)
    # What was decided on the votes as they were.
    for shards in (folder.decisions.folder, folder.triples.folder, made.dataset):
        shutil.rmtree(shards)
    folder.written.unlink()


def _point(condition: Condition, seed: int, made: RunDir, index: int, seconds: float) -> Point:
    folder = made.round(index)
    rows = folder.metrics.read(EVALUATION).to_pylist()
    found = {
        (row["name"], row["against"]): row["value"]
        for row in rows
        if row["labeler"] in (None, "judge_a")
    }
    curves = folder.metrics.read(TRAINING_CURVES).to_pylist()
    margins = [row["value"] for row in curves if row["name"] == "rewards/margins"]
    generated = sum(
        int(np.dot(table["tokens"], table["copies"]))
        for each in range(index + 1)
        for table in made.round(each).candidates.iter(columns=["tokens", "copies"])
    )
    guards = [n.get("guard") for n in made.notes() if (n["stage"], n["round"]) == ("train", index)]
    return Point(
        method=condition.method, strength=condition.strength, seed=seed, round=index,
        kl=found["kl", "start"], reward=found["mean_score", None],
        start_reward=found["mean_score", "start"], win_rate=found["win_rate", "start"],
        tokens=round(found["mean_tokens", None]), generated=generated,
        pairs=folder.triples.rows(), margin=max(margins, default=None), seconds=seconds,
        guard=guards[-1]["guard"] if guards and guards[-1] else None, right=_right(folder),
    )  # fmt: skip


def _right(folder: Any) -> float | None:
    from benchmarks.controlled.reward import sentiment

    rows = folder.triples.table(["chosen", "rejected"]).to_pylist()
    better = [
        sentiment(row["chosen"][0]["content"]) > sentiment(row["rejected"][0]["content"])
        for row in rows
    ]
    return float(np.mean(better)) if better else None
