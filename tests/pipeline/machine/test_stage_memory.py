"""What each stage takes of a device, by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from prefloop.data.errors import PrefloopError
from prefloop.data.protocol import EngineFailed
from prefloop.pipeline.commands.app import app
from prefloop.pipeline.config import RunConfig
from prefloop.pipeline.machine import footprint, hardware, stage_memory
from prefloop.pipeline.machine.stage_memory import StageMemory, memory_lines
from tests.helpers.runs import small_config

GIB = 2**30
JUDGE = {"type": "judge", "name": "judge", "judge": "pairwise", "engine": "judge"}


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with one GPU of 24 GiB."""
    monkeypatch.setattr(hardware, "gpus", lambda: 1)
    monkeypatch.setattr(footprint, "gpus", lambda: 1)
    for module in (footprint, stage_memory):
        monkeypatch.setattr(module, "capacity", lambda _: 24 * GIB)
    monkeypatch.setattr(stage_memory, "device_name", lambda device: device)


def config(policy: str = "x/m-0.6B", judge: str = "x/j-4B", **changes: Any) -> RunConfig:
    changes.setdefault("train", {"gradient_checkpointing": True})
    return small_config(
        policy=policy,
        engines={"default": {"type": "vllm"}, "judge": {"type": "vllm", "max_model_len": 4096}},
        label={"labelers": [{**JUDGE, "model": judge}]},
        **changes,
    )


def by_stage(config: RunConfig) -> dict[str, StageMemory]:
    return {one.stage: one for one in stage_memory.stage_memory(config)}


@pytest.mark.usefixtures("card")
def test_policy_and_judge_take_turns_on_one_card() -> None:
    stages = by_stage(config())
    assert list(stages) == ["sample", "label", "train", "evaluate"]
    assert all(one.fits and one.device == "cuda:0" for one in stages.values())
    assert stages["sample"].parts["weights"] == 600_000_000 * 2
    assert stages["sample"].needed == int(0.9 * 24 * GIB)  # vLLM takes its share whole
    assert stages["evaluate"].in_turn
    assert not stages["label"].in_turn
    # Weights, gradients and AdamW's two states in float32.
    train = stages["train"].parts
    assert sum(train[name] for name in ("weights", "gradients", "optimiser")) == 16 * 600_000_000
    assert train["activations"] > 0
    together = by_stage(config(memory="keep_open"))["evaluate"]
    assert (together.in_turn, together.fits, together.remedy[:16]) == (
        False,
        False,
        "set memory: auto",
    )


@pytest.mark.usefixtures("card")
def test_what_does_not_fit_says_what_to_change() -> None:
    stages = by_stage(config(policy="x/m-7B", judge="x/j-32B"))
    assert {name: one.fits for name, one in stages.items()} == {
        "sample": True, "label": False, "train": False, "evaluate": False,
    }  # fmt: skip
    lines = memory_lines(config(judge="x/j-32B"))
    assert lines[0] == "memory of cuda:0:"
    assert "does not fit: a smaller max_model_len" in lines[2]


@pytest.mark.usefixtures("card")
def test_an_adapter_needs_less() -> None:
    whole, adapter = (
        by_stage(config(policy="x/m-7B", train={"gradient_checkpointing": True, **lora}))["train"]
        for lora in ({}, {"lora": {"r": 16}})
    )
    assert not whole.fits
    assert adapter.needed < whole.needed / 4
    assert adapter.parts["weights"] == 2 * 7_000_000_000


@pytest.mark.usefixtures("card")
def test_a_training_that_samples_meanwhile_leaves_engines_less() -> None:
    online = {"gradient_checkpointing": True, "online": True, "batch_size": 1}
    stages = by_stage(config(train=online))
    assert stages["sample"].capacity == 24 * GIB - stages["train"].needed
    assert (stages["sample"].fits, stages["sample"].remedy) == (
        False, "a smaller gpu_memory_utilization",
    )  # fmt: skip


def test_servers_take_nothing_here() -> None:
    served = small_config(
        engines={"default": {"type": "openai"}}, evaluate={"enabled": False}, train=None
    )
    assert not memory_lines(served)


@pytest.mark.usefixtures("card")
def test_logits_take_what_is_computed_at_the_same_time() -> None:
    """However many tokens a batch has: they go through the output layer some at a time."""
    from prefloop.training.policy.head import CHUNK

    assert footprint.LOGITS_AT_ONCE == CHUNK
    small, large = (
        by_stage(config(train={"batch_size": size}))["train"].parts for size in (16, 64)
    )
    assert large["activations"] == 4 * small["activations"]
    assert large["logits"] == small["logits"] == 8 * 4096 * 32768


def replicated(replicas: Any, **changes: Any) -> RunConfig:
    return small_config(
        policy="x/m-0.6B",
        engines={"default": {"replicas": replicas, **changes}},
        label={"labelers": [{"type": "verifier"}]},
    )


def test_processes_on_the_cpu_each_take_the_whole() -> None:
    one, three = (by_stage(replicated(n, type="transformers", device="cpu"))["sample"]
                  for n in (1, 3))  # fmt: skip
    assert "processes" not in one.parts
    assert three.parts.pop("processes") == 3 * GIB // 2
    assert three.parts == {name: 3 * size for name, size in one.parts.items()}


@pytest.fixture
def cards(card: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with four GPUs of 24 GiB."""
    del card
    for module in (hardware, footprint):
        monkeypatch.setattr(module, "gpus", lambda: 4)


@pytest.mark.usefixtures("cards")
@pytest.mark.parametrize(
    ("replicas", "engine", "devices", "weights"),
    [
        (1, {"type": "transformers"}, 1, 1_200_000_000),
        (3, {"type": "transformers"}, 3, 1_200_000_000),
        ({"max": 8}, {"type": "vllm"}, 4, 1_200_000_000),
        (2, {"type": "vllm", "tensor_parallel_size": 2}, 4, 600_000_000),
        (2, {"type": "vllm", "gpus": 2}, 4, 1_200_000_000),
    ],
)
def test_processes_on_gpus_take_some_each(
    replicas: Any, engine: dict[str, Any], devices: int, weights: int
) -> None:
    stages = stage_memory.stage_memory(replicated(replicas, **engine))
    found = [one for one in stages if one.stage == "sample"]
    assert [one.device for one in found] == [f"cuda:{index}" for index in range(devices)]
    assert {one.parts["weights"] for one in found} == {weights}
    assert {one.needed for one in found} == {found[0].needed}


@pytest.mark.usefixtures("cards")
@pytest.mark.parametrize(
    ("replicas", "engine", "said"),
    [
        (5, {"type": "vllm"}, "replicas: 5 of 1 GPU each need 5 GPUs"),
        (1, {"type": "vllm", "tensor_parallel_size": 8}, "tensor_parallel_size: 8 needs 8 GPUs"),
    ],
)
def test_gpus_that_are_not_there_are_one_line(
    replicas: int, engine: dict[str, Any], said: str
) -> None:
    with pytest.raises(EngineFailed, match=said):
        memory_lines(replicated(replicas, **engine))


@pytest.mark.parametrize("command", ["run", "plan", "check"])
@pytest.mark.parametrize("device", ["cuda:99", "mps", "xpu"])
def test_a_device_that_is_not_here_is_named_in_one_line(
    command: str, device: str, tmp_path: Path
) -> None:
    file = tmp_path / "config.yaml"
    settings = {
        "run_dir": str(tmp_path / "run"),
        "engines": {"default": {"type": "transformers", "device": device}},
        "prompts": {"train": {"path": "embedded:prompts", "limit": 4}},
        "label": {"labelers": [{"type": "verifier", "check": "refusal", "name": "refusal"}]},
    }
    file.write_text(json.dumps(settings))
    done = CliRunner().invoke(app, [command, str(file)])
    assert done.exit_code != 0
    assert isinstance(done.exception, PrefloopError | SystemExit)
    said = f"{done.output} {done.exception}"
    assert f"device '{device}' cannot be used here" in " ".join(said.split())
