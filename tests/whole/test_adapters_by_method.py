"""Adapters that go from round to round, by every method."""

from __future__ import annotations

from pathlib import Path

import pytest
from safetensors.numpy import load_file

from prefloop.training.policy.checkpoints import is_adapter
from tests.helpers.runs import VERIFIER, run_small, small_config

BEST = {"filters": [{"type": "identical"}], "strategy": {"type": "best_vs_worst"}}


@pytest.mark.parametrize(
    "train",
    [{"method": "kto"}, {"method": "sft"}, {"online": True}, {"method": "grpo", "batch_size": 6}],
    ids=lambda train: train.get("method", "online"),
)
def test_an_adapter_goes_on_from_the_one_before(tmp_path: Path, train: dict) -> None:
    config = small_config(
        rounds=2, label={"labelers": [VERIFIER]}, filter=BEST,
        train={"batch_size": 4, "learning_rate": 1e-3, "lora": {"r": 4, "alpha": 8}, **train},
        evaluate={"enabled": False},
    )  # fmt: skip
    run = run_small(tmp_path / "run", config)
    first, second = (run.round(index).policy for index in (0, 1))
    assert is_adapter(first)
    assert is_adapter(second)
    # One adapter, not a second one for the reference; and another than that of the round before.
    assert not [path for path in second.iterdir() if path.is_dir()]
    one, other = (load_file(each / "adapter_model.safetensors") for each in (first, second))
    assert one.keys() == other.keys()
    assert any((one[name] != other[name]).any() for name in one)
    sampled = {row["policy_revision"] for row in run.round(1).candidates.read(0).to_pylist()}
    notes = [note for note in run.notes() if note["stage"] == "train"]
    assert sampled == {notes[1]["policy_revision"]}
