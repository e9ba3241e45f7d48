"""The ways of training: what each does between the starting policy and its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.sixteen.setting import Setting
from prefloop.pipeline.run.run_dir import RunDir
from prefloop.training.session.records import summary_of

TRL_WITH_PPO = "trl==1.12.0"
"""The last that has a PPO trainer."""


class NotTrained(Exception):
    """A method that cannot be run here; says why."""


@dataclass(frozen=True)
class Trained:
    """A method's policy, and what it took."""

    policy: str
    generated: int
    """Tokens that were sampled for its training."""
    steps: int
    seconds: float
    """Sampling and labelling included, as if each method had done it for itself."""


def sampled(setting: Setting) -> tuple[list[Path], int, float]:
    """Answers of the starting policy, labelled and written, a run for each pass; their tokens, and
    the seconds."""
    import prefloop

    runs = [RunDir(setting.out / "sampled" / str(index)) for index in range(setting.passes)]
    for index, run in enumerate(runs):
        seed = 1000 * setting.seed + index
        prefloop.run(setting.config() | {"rounds": 1, "seed": seed}, run_dir=run.root)
    return [run.root for run in runs], sum(map(_tokens, runs)), sum(map(_seconds, runs))


def offline(overrides: dict[str, Any], setting: Setting, out: Path) -> Trained:
    """``prefloop train`` on what the starting policy was sampled."""
    import prefloop

    runs, tokens, seconds = sampled(setting)
    changed = dict(overrides)
    method = changed.pop("method", "dpo")
    found = prefloop.train(
        runs, method=method, base=setting.model, out=out / "policy", seed=setting.seed,
        overrides=_optimised(setting, _pairs(setting, method)) | {"epochs": 2} | changed,
    )  # fmt: skip
    return Trained(str(out / "policy"), tokens, found.steps, seconds + found.seconds)


def rounds(train: dict[str, Any], setting: Setting, out: Path) -> Trained:
    """prefloop's own rounds: each pass is sampled from the policy as it is by then."""
    import prefloop

    rows = {"grpo": setting.prompts * setting.n, "rloo": setting.prompts * setting.n}
    batch = max(1, rows.get(train.get("method", ""), setting.prompts) // 4)
    if train.get("method", "dpo") == "dpo" and not train.get("online"):
        # Two passes over a round's pairs, like the offline methods.
        batch, train = max(1, setting.prompts // 2), {"epochs": 2} | train
    raw = setting.config() | {"train": _optimised(setting, batch) | train}
    raw["evaluate"] = {"enabled": False, "promote": "always"}
    run = RunDir(out / "run")
    prefloop.run(raw, run_dir=run.root)
    last = run.round(setting.passes - 1)
    steps = sum(_steps(run.round(index).policy) for index in range(setting.passes))
    return Trained(str(last.policy), _tokens(run), steps, _seconds(run))


def ppo(setting: Setting, out: Path) -> Trained:
    """TRL's PPO, in a process that sees the TRL which still has it."""
    library = setting.out / "trl"
    if not (library / "trl").exists():
        command = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
        done = subprocess.run(
            [*command, "install", "--no-deps", "--target", str(library), TRL_WITH_PPO],
            check=False, capture_output=True, text=True,
        )  # fmt: skip
        if done.returncode:
            reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
            raise NotTrained(f"{TRL_WITH_PPO} could not be fetched: {reason}")
    given = out / "setting.json"
    given.write_text(json.dumps(asdict(setting), default=str), encoding="utf-8")
    root = Path(__file__).parents[2]
    began = time.perf_counter()
    subprocess.run(
        [sys.executable, "-m", "benchmarks.sixteen.ppo", str(given), str(out)],
        check=True, cwd=root,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(library), str(root)])},
    )  # fmt: skip
    found = json.loads((out / "ppo.json").read_text("utf-8"))
    return Trained(
        str(out / "policy"), found["generated"], found["steps"], time.perf_counter() - began
    )


METHODS: dict[str, Callable[[Setting, Path], Trained]] = {
    "SFT on the best": partial(offline, {"method": "sft"}),
    "DPO": partial(offline, {"beta": 0.1}),
    "IPO": partial(offline, {"loss": "ipo", "beta": 0.1}),
    "KTO": partial(offline, {"method": "kto", "beta": 0.1}),
    "ORPO": partial(offline, {"loss": "orpo", "beta": 0.1}),
    "SimPO": partial(offline, {"loss": "simpo", "beta": 2.0, "simpo_gamma": 1.0}),
    "iterative DPO": partial(rounds, {"beta": 0.1}),
    "online DPO": partial(rounds, {"beta": 0.1, "online": True}),
    "GRPO": partial(rounds, {"method": "grpo", "beta": 0.04, "reward": "score"}),
    "RLOO": partial(rounds, {"method": "rloo", "beta": 0.04, "reward": "score"}),
    "PPO": ppo,
}


def train(name: str, setting: Setting) -> Trained:
    """Train by the method of this name, or read what it did before."""
    out = setting.out / f"{name.lower().replace(' ', '-')}-{setting.seed}"
    kept = out / "trained.json"
    if kept.exists():
        return Trained(**json.loads(kept.read_text("utf-8")))
    out.mkdir(parents=True, exist_ok=True)
    found = METHODS[name](setting, out)
    kept.write_text(json.dumps(asdict(found)), encoding="utf-8")
    return found


def _optimised(setting: Setting, batch: int) -> dict[str, Any]:
    """What no method has for itself. Without guards: how far each goes is the question."""
    return {
        "learning_rate": setting.rate, "lr_scheduler": "constant", "warmup_ratio": 0.0,
        "batch_size": batch, "order": "random", "guards": {"enabled": False},
    }  # fmt: skip


def _pairs(setting: Setting, method: str) -> int:
    """Rows of a batch, with which two epochs are ``updates`` steps."""
    rows = setting.passes * setting.prompts * (setting.n if method == "kto" else 1)
    return max(2, 2 * rows // setting.updates)


def _steps(policy: Path) -> int:
    return int((summary_of(policy) or {})["steps"])


def _tokens(run: RunDir) -> int:
    return sum(
        int(np.dot(table["tokens"], table["copies"]))
        for each in run.rounds()
        for table in each.candidates.iter(columns=["tokens", "copies"])
    )


def _seconds(run: RunDir) -> float:
    return float(sum(note["seconds"] for note in run.notes()))
