"""What a training is known by, and what is written for other processes: old runs hold both."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from prefloop.training.config import Lora, TrainConfig
from prefloop.training.inputs.answers import Answers
from prefloop.training.inputs.pairs import Pairs
from prefloop.training.inputs.rendering import Rendering
from prefloop.training.methods.dpo import Dpo
from prefloop.training.methods.kto import Kto
from prefloop.training.methods.online import OnlineDpo
from prefloop.training.methods.reinforcement import Reinforcement
from prefloop.training.methods.sft import Sft
from prefloop.training.session import fit as fit_module
from prefloop.training.session import job as job_module
from prefloop.training.session.fit import fit
from prefloop.training.session.job import Job
from prefloop.training.session.on_policy import Prompts
from tests.helpers.dpo_data import rows, write
from tests.helpers.engine_models import make_model


def never(*_: Any) -> Any:
    raise AssertionError("nothing is trained")


ASKED = Prompts([[{"role": "user", "content": f"Write {n}."}] for n in range(5)], 2)
REINFORCEMENT = Reinforcement(ASKED, never, group_size=3, temperature=0.9, max_tokens=40)


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(make_model(tmp_path_factory.mktemp("model") / "policy", layers=1, width=64))


DEFAULTS_OF_THEN = {"learning_rate": 5e-7, "beta": 0.1, "gradient_accumulation": 1}
"""Of keys that have no one default now: a run goes on with what it was begun with."""


# A fingerprint that changes has every unfinished training begin anew, and finished ones refused.
@pytest.mark.parametrize(
    ("settings", "method", "fingerprint"),
    [
        ({}, Dpo(), "501f1ced2069f3fe83fcd1963f513d2b"),
        ({"method": "kto"}, Kto(), "85032297150403de4eba1319affa887f"),
        ({"method": "sft"}, Sft(), "b54c100306ae724813da2a3f84f35f2d"),
        ({"online": True}, OnlineDpo(ASKED, never), "53ae5b5d9e52d1f8f5169b6ff25624b9"),
        ({"method": "grpo"}, REINFORCEMENT, "6f323bf8b3eb9c78f94f7f1e8f3f322a"),
    ],
)
def test_a_training_has_the_fingerprint_that_it_always_had(
    policy: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    settings: dict[str, Any],
    method: Any,
    fingerprint: str,
) -> None:
    here = {"precision": "float32", "device": "cpu", "versions": {"trl": "1"}}
    monkeypatch.setattr(job_module, "environment", lambda _: here)
    monkeypatch.setattr(job_module, "folder_revision", lambda folder: folder.name)
    monkeypatch.setattr(Pairs, "digest", lambda _: "pairs")
    monkeypatch.setattr(Answers, "digest", lambda _: "answers")
    monkeypatch.setattr(fit_module, "recorded", lambda _, fingerprint: fingerprint)
    shard = write(tmp_path / "t.parquet", rows(6))
    config = TrainConfig(**{**DEFAULTS_OF_THEN, **settings})
    job = Job(policy, Path("reference"), (shard,), tmp_path, config, seed=7)
    assert fit(job, method) == fingerprint


def test_data_have_the_digest_that_they_always_had() -> None:
    prompts, good, bad = (
        [np.array(ids, np.int32) for ids in column]
        for column in ([[1, 2], [3]], [[4], [5, 6]], [[7], [8]])
    )
    pairs = Pairs(prompts, good, bad, [1.0, 0.75], 0)
    assert pairs.digest() == "dc13bfc5a9bd75c2cda7a98cd3157092"
    assert pairs.token_digest() == "a7cf854323e85a0e07d401845bfd8a85"
    assert Answers(prompts, good, [True, False], 0).digest() == "623cd4e63c007d2519ed8b56e07f2994"


def test_a_job_is_the_same_in_another_process(tmp_path: Path) -> None:
    config = TrainConfig(lora=Lora(r=4), data="replay")
    paths = [tmp_path / name for name in ("policy", "reference", "out", "logps.parquet")]
    job = Job(
        paths[0], paths[1], (tmp_path / "a", tmp_path / "b"), paths[2], config, 3,
        replay=(tmp_path / "c",), held_out=(tmp_path / "e",), kept_reference=paths[3],
        rendering=Rendering({"enable_thinking": False}, (tmp_path / "d",)),
    )  # fmt: skip
    assert Job.load(job.dump()) == job
    assert set(json.loads(job.dump())) == {
        "policy", "reference", "files", "replay", "out", "kept_reference", "config", "seed",
        "template_kwargs", "sampled", "held_out",
    }  # fmt: skip
