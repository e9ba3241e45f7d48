"""Trainings that end once held-out pairs get no better."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from prefloop.data.hashing import folder_revision
from prefloop.pipeline.config import ConfigError
from prefloop.training.config import TrainConfig
from prefloop.training.errors import TrainingError
from prefloop.training.methods.dpo import Dpo
from prefloop.training.session.fit import fit
from prefloop.training.session.job import Job
from tests.helpers.dpo_data import rows, write
from tests.helpers.engine_models import make_model
from tests.helpers.runs import run_small, small_config


class Stopped(Exception):
    pass


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(make_model(tmp_path_factory.mktemp("policy"), layers=1, width=64))


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Pairs to train on, and held-out ones whose labels are the other way round: what is learned
    does them harm from some step on. One of those is on a prompt that is trained on."""
    folder = tmp_path_factory.mktemp("triples")
    held = rows(13, seed=5)
    for number, row in enumerate(held):
        row["chosen"], row["rejected"] = row["rejected"], row["chosen"]
        row["prompt"] = [{"role": "user", "content": f"Say something. {max(number, 1)}"}]
    held[0]["prompt"] = rows(1)[0]["prompt"]
    return write(folder / "train.parquet", rows(24)), write(folder / "test.parquet", held)


def train(
    policy: Path, shards: tuple[Path, Path], out: Path, on_step: Any = None, **stop: Any
) -> Any:
    config = TrainConfig(
        batch_size=2, learning_rate=1e-3, warmup_ratio=0, save_steps=4,
        stop_early={"times": 6, "patience": 2, **stop},
    )  # fmt: skip
    job = Job(policy, policy, shards[:1], out, config, seed=3, held_out=shards[1:])
    return fit(job, Dpo(), on_step=on_step)


def test_the_best_weights_are_kept_and_training_ends(
    policy: Path, shards: tuple[Path, Path], tmp_path: Path
) -> None:
    result = train(policy, shards, tmp_path / "p")
    looks = result.early["measured"]
    assert [one["step"] for one in looks] == [2, 4, 6][: len(looks)]
    losses = [one["loss"] for one in looks]
    assert losses[0] == min(losses) < losses[-1]
    assert result.early["stopped"]
    assert result.early["kept_step"] == 2
    assert result.steps == 6 == result.history[-1]["step"]

    def stop(record: dict[str, float]) -> None:
        if record["step"] == 6:
            raise Stopped

    # Weights that are kept are those of that step; a resumed training keeps the same.
    with pytest.raises(Stopped):
        train(policy, shards, tmp_path / "again", stop)
    again = train(policy, shards, tmp_path / "again")
    assert again.early == result.early
    assert folder_revision(again.policy_path) == folder_revision(result.policy_path)
    last = train(policy, shards, tmp_path / "last", patience=6, times=1)
    assert (last.early["kept_step"], last.early["stopped"]) == (12, False)
    assert len(last.early["measured"]) == 1
    assert folder_revision(last.policy_path) != folder_revision(result.policy_path)


def test_held_out_pairs_are_measured_as_what_is_trained_on(
    policy: Path, shards: tuple[Path, Path], tmp_path: Path
) -> None:
    """The loss of pairs under weights that moved by one step is near log 2, and half of the mirror
    images of trained pairs are right where all of those are wrong."""
    result = train(policy, shards, tmp_path / "p", by="accuracy", times=12, patience=12)
    looks = result.early["measured"]
    assert looks[0]["loss"] == pytest.approx(0.693, abs=0.1)
    right = [12 * one["accuracy"] for one in looks]
    assert right == pytest.approx([round(one) for one in right], abs=1e-5)
    best = max(looks, key=lambda one: one["accuracy"])
    assert result.early["kept_step"] == best["step"]


def test_where_nothing_can_be_measured(
    policy: Path, shards: tuple[Path, Path], tmp_path: Path
) -> None:
    with pytest.raises(TrainingError, match="no held-out pair to measure"):
        train(policy, (shards[0], shards[0]), tmp_path / "p")
    for settings in ({"method": "kto"}, {"online": True}, {"reference": "ema"}):
        with pytest.raises(ValidationError, match="stop_early"):
            TrainConfig.model_validate({"stop_early": {}, **settings})
    with pytest.raises(ConfigError, match=r"set write\.test_share above 0"):
        small_config(train={"stop_early": {}}, write={"test_share": 0})


def test_a_run_measures_its_test_split(tmp_path: Path) -> None:
    train = {"learning_rate": 1e-4, "batch_size": 4, "stop_early": {"times": 2}}
    run = run_small(tmp_path / "run", small_config(train=train, write={"test_share": 0.3}))
    [note] = [note for note in run.notes() if note["stage"] == "train"]
    assert len(note["early"]["measured"]) >= 2
    assert f"kept step {note['early']['kept_step']}" in run.report.read_text()
