"""What a training's settings come to that its config leaves out."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import pytest
from pydantic import ValidationError

from prefloop.training.config import RewardConfig, TrainConfig
from prefloop.training.defaults import as_begun
from prefloop.training.presets import PRESETS, STEP, Preset


@pytest.mark.parametrize(
    ("given", "rate", "beta"),
    [
        ({}, 5e-7, 0.1),
        ({"lora": {}}, 5e-6, 0.1),
        ({"loss": "simpo"}, 5e-7, 2),
        ({"loss": ["sft", "sigmoid_norm"], "lora": {}}, 5e-6, 5),
        ({"loss": "orpo"}, 8e-6, 0.1),
        ({"method": "sft", "lora": {}}, 1e-4, 0.1),
        ({"method": "kto", "loss": "simpo"}, 5e-7, 0.1),  # a loss of DPO alone
        ({"method": "grpo"}, 1e-6, 0.04),
        ({"method": "grpo", "policy_loss": "dapo"}, 1e-6, 0),
        ({"method": "rloo"}, 1e-6, 0.05),
        ({"learning_rate": 1e-3, "beta": 0.3, "lora": {}, "loss": "simpo"}, 1e-3, 0.3),
        ({"preset": "simpo", "beta": 3.0}, 1e-6, 3),
        ({"preset": "tulu3", "lora": {}}, 5e-6, 5),
    ],
)
def test_rate_and_beta_by_method_loss_and_adapter(given: Any, rate: float, beta: float) -> None:
    config = TrainConfig(**given)
    assert (config.learning_rate, config.beta) == (rate, beta)
    assert TrainConfig.model_validate(config.model_dump(mode="json")) == config
    assert not config.resolved.keys() & given.keys()


@pytest.mark.parametrize(
    ("given", "passes"),
    [
        ({"cluster": {"workers": 2}}, 2),
        ({"cluster": {"workers": 8}}, 1),
        ({"cluster": {"workers": 4}, "preset": "tulu3", "batch_size": 4}, 8),
        ({}, 4),
        ({"batch_size": 2}, 1),  # what is said stands
        ({"gradient_accumulation": 2}, 2),
        ({"preset": "zephyr"}, 16),
        ({"preset": "zephyr", "batch_size": 2}, 64),
        ({"preset": "zephyr", "batch_size": 500}, 1),
    ],
)
def test_a_step_has_enough_pairs(given: Any, passes: int) -> None:
    assert TrainConfig(**given).gradient_accumulation == passes


def test_processes_of_a_file_of_accelerate_count(tmp_path: Path) -> None:
    file = tmp_path / "accelerate.yaml"
    file.write_text("distributed_type: MULTI_GPU\nnum_processes: 4\n", encoding="utf-8")
    config = TrainConfig(preset="tulu3", batch_size=4, accelerate=file)
    assert (config.gradient_accumulation, config.processes) == (8, 4)
    for refused in (5, "ray", [1]):
        with pytest.raises(ValidationError):
            TrainConfig.model_validate({"cluster": refused})
    for content in ("num_processes: many\n", "num_processes: 0\n", "- 4\n", "a: [\n", ""):
        file.write_text(content, encoding="utf-8")
        assert TrainConfig(accelerate=file).processes == 1
    assert TrainConfig(accelerate=tmp_path / "none.yaml").gradient_accumulation == 4
    # What a run was begun with stays, wherever the file is by then.
    before = config.model_dump(mode="json")
    now = TrainConfig(preset="tulu3", batch_size=4, accelerate=file).model_dump(mode="json")
    given = {"preset", "batch_size", "accelerate"}
    assert as_begun(given, now, before)["gradient_accumulation"] == 8


def test_losses_of_grpo_bring_their_papers_settings() -> None:
    assert not TrainConfig(method="grpo", policy_loss="dr_grpo").scale_rewards
    assert TrainConfig(method="grpo", policy_loss="dapo").clip_high == 0.28
    assert TrainConfig(method="grpo").clip_high is None
    for key in ({"policy_loss": "dapo"}, {"clip_high": 0.3}, {"mask_truncated": True}):
        with pytest.raises(ValidationError, match=f"{next(iter(key))} is for method"):
            TrainConfig(**key)
    with pytest.raises(ValidationError, match="beta 0 is for grpo"):
        TrainConfig(beta=0)


@pytest.mark.parametrize("name", get_args(Preset))
def test_presets_are_settings_that_can_be(name: str) -> None:
    values = dict(PRESETS[name])
    pairs = values.pop(STEP)
    config = TrainConfig.model_validate({"preset": name})
    assert {key: getattr(config, key) for key in values} == values
    assert config.batch_size * config.gradient_accumulation == pairs
    assert config.resolved.items() >= {"gradient_accumulation": 16}.items()


def test_a_reward_models_adapter_has_a_higher_rate() -> None:
    assert RewardConfig().learning_rate == 1e-5
    assert RewardConfig.model_validate({"lora": {}}).learning_rate == 1e-4
    before = {"learning_rate": 1e-5, "lora": {"r": 16}}
    assert RewardConfig.model_validate({"lora": {}}).continuing(before).learning_rate == 1e-5


def test_a_warm_up_of_an_adapter_has_a_higher_rate() -> None:
    def rate(**given: Any) -> float:
        warm = TrainConfig.model_validate(given).sft_warmup
        assert warm is not None
        return warm.learning_rate

    assert rate(sft_warmup={}) == 1e-5
    assert rate(sft_warmup={"epochs": 2}, lora={}) == 1e-4
    assert rate(sft_warmup={"learning_rate": 2e-5}, lora={}) == 2e-5
    config = TrainConfig.model_validate({"sft_warmup": {}, "lora": {}})
    written = config.model_dump(mode="json")
    assert TrainConfig.model_validate(written) == config
    before = {**written, "sft_warmup": {"learning_rate": 1e-5, "epochs": 1.0}}
    begun = config.continuing(before)
    assert begun.sft_warmup is not None
    assert begun.sft_warmup.learning_rate == 1e-5
    assert begun.continuing(before) == begun
    without = TrainConfig.model_validate({"sft_warmup": {}}).continuing(before)
    assert without.sft_warmup is not None
    assert without.sft_warmup.learning_rate == 1e-5
