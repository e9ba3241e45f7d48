"""Optimisers and kernels that need more than is installed everywhere."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from prefloop.data.hashing import folder_revision
from prefloop.training.config import TrainConfig
from prefloop.training.errors import TrainingError
from prefloop.training.methods.sft import Sft
from prefloop.training.session import setup
from prefloop.training.session.fit import fit
from prefloop.training.session.job import Job
from tests.helpers.dpo_data import rows, write
from tests.helpers.engine_models import make_model


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(make_model(tmp_path_factory.mktemp("policy"), layers=1, width=64))


def train(policy: Path, out: Path, **settings: Any) -> Any:
    shard = write(out.with_suffix(".parquet"), rows(8))
    config = TrainConfig(
        **{"method": "sft", "batch_size": 4, "learning_rate": 1e-2, "epochs": 2, **settings}
    )
    return fit(Job(policy, policy, (shard,), out, config, seed=3), Sft())


def test_adam_in_8_bits_learns_and_is_another_optimiser(policy: Path, tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    full = train(policy, tmp_path / "full")
    small = train(policy, tmp_path / "small", optimizer="adamw_8bit")
    assert small.settings["optimizer"] == "adamw_8bit"
    assert "optimizer" not in full.settings, "what earlier versions did has the same fingerprint"
    first, last = (small.history[at]["loss"] for at in (0, -1))
    assert last < first - 0.01
    assert folder_revision(small.policy_path) != folder_revision(full.policy_path)


@pytest.mark.parametrize(
    ("settings", "missing", "message"),
    [
        ({"optimizer": "adamw_8bit"}, "bitsandbytes", r"bitsandbytes: pip install 'prefloop\[q"),
        ({"optimizer": "paged_adamw"}, None, "there is none here: use adamw_8bit"),
        ({"liger": True}, "liger_kernel", r"pip install 'prefloop\[liger\]'"),
        ({"liger": True}, None, "liger is for GPUs"),
    ],
)
def test_what_cannot_be_had_here_is_said(
    policy: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    settings: dict[str, Any],
    missing: str | None,
    message: str,
) -> None:
    monkeypatch.setattr(setup, "find_spec", lambda name: None if name == missing else object())
    monkeypatch.setattr(setup, "has_gpu", lambda: False)
    with pytest.raises(TrainingError, match=message):
        train(policy, tmp_path / "p", **settings)
