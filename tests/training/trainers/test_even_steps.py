"""A step's gradient does not go by how the step is cut into batches."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from prefloop.training.config import RewardConfig, TrainConfig
from prefloop.training.methods.offline import train_offline
from prefloop.training.methods.reward import RewardJob, train_reward
from prefloop.training.session.job import Job
from tests.helpers.dpo_data import rows, write
from tests.helpers.engine_models import make_model

PAIRS = 12


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(make_model(tmp_path_factory.mktemp("policy"), layers=1, width=64))


@pytest.fixture(scope="module")
def shard(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("triples") / "t.parquet", rows(PAIRS))


def first_step(policy: Path, shard: Path, out: Path, **settings: Any) -> dict[str, float]:
    if settings.pop("reward", False):
        job = RewardJob(policy, (shard,), out, RewardConfig(**settings), seed=0)
        return train_reward(job).history[0]
    return train_offline(Job(policy, policy, (shard,), out, TrainConfig(**settings), 0)).history[0]


@pytest.mark.parametrize(
    ("settings", "examples"),
    [
        ({"loss": ("sigmoid", "sft")}, PAIRS),  # a mean over pairs, and one over tokens
        ({"loss": "simpo", "beta": 2.0}, PAIRS),
        ({"method": "kto"}, 2 * PAIRS),
        ({"reward": True}, PAIRS),
    ],
    ids=["dpo", "simpo", "kto", "reward model"],
)
def test_each_row_counts_the_same(
    policy: Path, shard: Path, tmp_path: Path, settings: dict[str, Any], examples: int
) -> None:
    """The last of the smaller batches is a short one."""
    whole, cut = (
        first_step(
            policy, shard, tmp_path / str(size), batch_size=size,
            gradient_accumulation=-(-examples // size), **settings,
        )
        for size in (examples, 5)
    )  # fmt: skip
    assert examples % 5
    assert cut["loss"] == pytest.approx(whole["loss"], rel=1e-5)
    assert cut["grad_norm"] == pytest.approx(whole["grad_norm"], rel=1e-5)
