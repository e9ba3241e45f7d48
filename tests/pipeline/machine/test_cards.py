"""Plans for machines that are not here: their memory, their speed, and nothing of this one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import prefloop
from prefloop.data.errors import InputError
from prefloop.pipeline.commands.app import app
from prefloop.pipeline.config import validate_config
from prefloop.pipeline.machine.cards import CARDS, machine_named
from prefloop.pipeline.machine.hardware import gpus
from prefloop.pipeline.plan.plan import Plan, make_plan
from prefloop.pipeline.run.run_dir import RunDir
from tests.helpers.synthetic_run import write_run

GIB = 2**30


def _raw(folder: Path, **changes: Any) -> dict[str, Any]:
    prompts = folder / "prompts.jsonl"
    rows = [{"prompt": f"Describe thing number {index:06d}."} for index in range(1024)]
    prompts.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return {
        "run_dir": str(folder / "run"),
        "policy": "someone/model-8B",
        "engines": {"default": {"type": "vllm", "max_model_len": 4096}},
        "prompts": {
            "train": {"path": str(prompts)}, "heldout_share": 0.0,
            "near_duplicates": {"enabled": False},
        },
        "sample": {"n": 4, "max_tokens": 100},
        "label": {"labelers": [{"type": "verifier"}]},
        "train": {"lora": {}},
    } | changes  # fmt: skip


def _plan(folder: Path, on: str, **changes: Any) -> Plan:
    config = validate_config(_raw(folder, **changes), "test")
    return make_plan(config, on=machine_named(on))


@pytest.mark.parametrize(
    ("text", "count", "card"),
    [
        ("h100", 1, "h100"),
        ("8xH100", 8, "h100"),
        ("RTX 4090", 1, "rtx4090"),
        ("16xl40s", 16, "l40s"),
    ],
)
def test_machines_have_names(text: str, count: int, card: str) -> None:
    assert machine_named(text).count == count
    assert machine_named(text).card is CARDS[card]


@pytest.mark.parametrize("text", ["", "h1000", "0xh100", "8x", "x8h100", "cpu"])
def test_what_is_no_machine_is_refused_with_those_that_are(text: str) -> None:
    with pytest.raises(InputError, match=r"rtx4090, l40s, a100, h100, h200"):
        machine_named(text)


def test_memory_is_that_of_the_card(tmp_path: Path) -> None:
    plan = _plan(tmp_path, "h100")
    assert {one.device for one in plan.memory} == {"cuda:0"}
    assert {one.capacity for one in plan.memory} == {79 * GIB}
    assert all(one.fits for one in plan.memory)
    # 8e9 parameters of two bytes are 15 GiB, of four with gradients and moments 119.
    small = _plan(tmp_path, "rtx4090", train={})
    assert [one.stage for one in small.memory if not one.fits] == ["train"]


def test_time_is_by_the_data_sheet(tmp_path: Path) -> None:
    plan = _plan(tmp_path, "h100")
    tokens = 2 * sum(each.examples for each in plan.training) * (32 / 4 + 8 + 50)
    # Four operations a token and parameter with an adapter, two for the reference; 60 % of what
    # large products reach, which is 65 % of the sheet.
    learned = 6 * 8e9 * tokens / (0.6 * 0.65 * 989e12)
    assert plan.training[0].seconds == pytest.approx(learned, rel=0.2)
    said = " ".join(plan.assumptions)
    assert "speed of cuda:0 in bfloat16, 65% of the operations" in said
    assert "measured here" not in said
    assert gpus() == len(_here())


def _here() -> list[int]:
    import torch

    return list(range(torch.cuda.device_count() if torch.cuda.is_available() else 0))


def test_replicas_share_the_work_of_several_cards(tmp_path: Path) -> None:
    engines = {"default": {"type": "vllm", "max_model_len": 4096, "replicas": 8}}
    one, eight = _plan(tmp_path, "h100"), _plan(tmp_path, "8xh100", engines=engines)
    sampled = [plan.steps[0].seconds for plan in (one, eight)]
    assert sampled[0] / sampled[1] == pytest.approx(8, rel=0.1)
    assert {each.device for each in eight.memory} >= {f"cuda:{index}" for index in range(8)}


def test_of_finished_work_only_lengths_count(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    config = validate_config(_raw(tmp_path, rounds=2), "test")
    here, there = make_plan(config, run), make_plan(config, run, on=machine_named("h100"))
    assert "as measured in the run directory" in " ".join(here.assumptions)
    assert here.steps[0].completion_tokens == there.steps[0].completion_tokens
    assert not any("s a sample, as measured" in line for line in there.assumptions)
    assert any("s a sample, as measured" in line for line in here.assumptions)
    assert RunDir(run.root).journal.exists()


def test_the_command_and_python_take_it(tmp_path: Path) -> None:
    file = tmp_path / "config.json"
    raw = _raw(tmp_path)
    file.write_text(json.dumps(raw), encoding="utf-8")
    done = CliRunner().invoke(app, ["plan", str(file), "--on", "h100", "--json"])
    assert done.exit_code == 0, done.output
    assert {one["device"] for one in json.loads(done.stdout)["memory"]} == {"cuda:0"}
    assert prefloop.plan(raw, on="h100").facts.memory[0].capacity == 79 * GIB
    both = CliRunner().invoke(app, ["plan", str(file), "--on", "h100", "--sweep", "train.beta=1,2"])
    assert both.exit_code == 2
