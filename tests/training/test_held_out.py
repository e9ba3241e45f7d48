"""No training on answers sampled meanwhile learns from a prompt of the test split."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from prefloop.data.hashing import folder_revision, prompt_id
from prefloop.training.config import TrainConfig
from prefloop.training.methods.online import OnlineDpo
from prefloop.training.methods.reinforcement import Reinforcement
from prefloop.training.session.fit import fit
from prefloop.training.session.job import Job
from prefloop.training.session.on_policy import Group, Prompts
from tests.helpers.dpo_data import triple, write
from tests.helpers.engine_models import make_model

ASKED = [[{"role": "user", "content": f"Write one sentence. {n}"}] for n in range(4)]
HELD_OUT = frozenset({prompt_id(ASKED[1])})
STEADY: dict[str, Any] = {"learning_rate": 1e-3, "warmup_ratio": 0, "lr_scheduler": "constant"}


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(make_model(tmp_path_factory.mktemp("policy"), layers=1, width=64))


def weights(folder: Path) -> str:
    return folder_revision(folder)


@pytest.mark.parametrize("method", ["grpo", "rloo"])
def test_reinforcement(policy: Path, tmp_path: Path, method: str) -> None:
    config = TrainConfig(method=method, batch_size=8, beta=0.1, **STEADY)
    other = Path(make_model(tmp_path / "reference", layers=1, width=64, seed=5))

    def trained(name: str, text: str, reward: float, held_out: frozenset[str]) -> str:
        def groups(leg: int, now: Any) -> list[Group]:
            good = Group(["a fox!", "a dog."], [True, True], [1.0, 0.0])
            odd = Group([text, "lazy"], [True, True], [reward, 0.5])
            return [good, odd, good, good]

        method = Reinforcement(
            Prompts(ASKED, 4, held_out), groups, group_size=2, temperature=1.0, max_tokens=8
        )
        job = Job(policy, other, (), tmp_path / name, config, seed=1)
        return weights(fit(job, method).policy_path)

    apart = trained("a", "quick wizard", 1.0, HELD_OUT)
    assert apart == trained("b", "dog answer lantern", 0.0, HELD_OUT)
    assert apart != weights(policy)
    assert apart != trained("c", "quick wizard", 1.0, frozenset())


def test_online_dpo(policy: Path, tmp_path: Path) -> None:
    config = TrainConfig(online=True, online_steps=1, batch_size=4, **STEADY)

    def trained(name: str, chosen: str, held_out: frozenset[str]) -> str:
        rows = [triple(n, "a fox!", "a dog.") for n in (0, 2, 3)]
        shard = write(tmp_path / f"{name}.parquet", [*rows, triple(1, chosen, "lazy")])
        job = Job(policy, policy, (), tmp_path / name, config, seed=1)
        method = OnlineDpo(Prompts(ASKED, 4, held_out), lambda leg, now: [shard])
        return weights(fit(job, method).policy_path)

    apart = trained("a", "quick wizard", HELD_OUT)
    assert apart == trained("b", "dog answer lantern", HELD_OUT)
    assert apart != weights(policy)
    assert apart != trained("c", "quick wizard", frozenset())
