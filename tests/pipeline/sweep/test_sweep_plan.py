"""The price of a sweep: what is shared counts once, what each value does counts for each."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from prefloop.pipeline.commands.app import app
from prefloop.pipeline.config import ConfigError
from prefloop.pipeline.machine.speed import MachineSpeed
from prefloop.pipeline.plan.plan import make_plan
from prefloop.pipeline.sweep.sweep_plan import SweepPlan, plan_sweep
from prefloop.pipeline.sweep.swept import trials

SPEED = MachineSpeed(flops=1e11, bytes_per_second=2e10, operation_s=1e-5)
PROMPTS, HELDOUT = 20, 4


def config_of(folder: Path, **changes: Any) -> dict[str, Any]:
    for name, number in (("train", PROMPTS), ("held", HELDOUT)):
        rows = [json.dumps({"prompt": f"Say {name} {at:03d} in words."}) for at in range(number)]
        (folder / f"{name}.jsonl").write_text("\n".join(rows))
    judge = {"type": "judge", "engine": "api", "model": "judge-model"}
    return {
        "run_dir": str(folder / "run"),
        "engines": {
            "default": {"type": "vllm"},
            "api": {"type": "openai", "price_per_million_prompt_tokens": 2.0},
        },
        "prompts": {
            "train": {"path": str(folder / "train.jsonl")},
            "heldout": {"path": str(folder / "held.jsonl")},
            "near_duplicates": {"enabled": False},
        },
        "sample": {"n": 4, "max_tokens": 100},
        "label": {"labelers": [judge]},
        "write": {"test_share": 0.0},
        "train": {"batch_size": 2, "gradient_accumulation": 1},
        "evaluate": {"samples_per_prompt": 1},
    } | changes


def planned(config: dict[str, Any], **values: list[Any]) -> SweepPlan:
    keys = {name.replace("__", "."): listed for name, listed in values.items()}
    shared, tried = trials(config, (), keys, Path(config["run_dir"]))
    return plan_sweep(shared, tried, speed_of=lambda *_: SPEED)


def requests(plan: Any, stage: str) -> int:
    return sum(step.requests for step in plan.steps if step.stage == stage)


def test_answers_and_votes_count_once_and_trainings_for_each_value(tmp_path: Path) -> None:
    config = config_of(tmp_path)
    shared, tried = trials(config, (), {"train.beta": [0.1]}, tmp_path / "run")
    alone = make_plan(shared, speed_of=lambda *_: SPEED)
    one = plan_sweep(shared, tried, speed_of=lambda *_: SPEED)
    assert sum(map(len, (one.shared.steps, one.trials[0].plan.steps))) == len(alone.steps)
    for name in ("requests", "tokens", "max_tokens", "cost", "max_cost"):
        assert one.total[name] == pytest.approx(getattr(alone, name))

    three = planned(config, train__beta=[0.03, 0.1, 0.3])
    assert replace(three.shared) == one.shared
    assert requests(three.shared, "sample") == PROMPTS * 4
    assert requests(three.shared, "label") == PROMPTS * 6 * 2
    assert requests(three.shared, "evaluate") == HELDOUT  # the starting policy's answers
    assert not three.shared.training
    for trial in three.trials:
        assert requests(trial.plan, "sample") == requests(trial.plan, "label") == 0
        assert [each.examples for each in trial.plan.training] == [PROMPTS]
        assert trial.plan.cost == pytest.approx(alone.cost - three.shared.cost)
        assert trial.plan.cost > 0  # a judge that is paid compares its answers
    assert [one.label for one in three.trials] == ["train.beta=0.03", "train.beta=0.1",
                                                   "train.beta=0.3"]  # fmt: skip
    assert three.total["cost"] < 3 * alone.cost


def test_each_value_has_its_own_training(tmp_path: Path) -> None:
    strategies = [{"type": "best_vs_worst"}, {"type": "all"}]
    best, every = planned(config_of(tmp_path), filter__strategy=strategies).trials
    assert best.plan.training[0].examples == PROMPTS
    assert every.plan.training[0].examples == PROMPTS * 6
    short, long = planned(config_of(tmp_path), train__epochs=[1, 3]).trials
    assert long.plan.training[0].steps == 3 * short.plan.training[0].steps
    assert long.plan.seconds > short.plan.seconds


def test_later_rounds_are_each_value_s_own(tmp_path: Path) -> None:
    plan = planned(config_of(tmp_path, rounds=2), train__beta=[0.1, 0.3])
    assert plan.shared.prompts_per_round == (PROMPTS,)
    for trial in plan.trials:
        assert {step.round for step in trial.plan.steps if step.stage == "sample"} == {1}
        assert requests(trial.plan, "label") == PROMPTS * 6 * 2


def test_budgets_are_the_shared_round_s_and_each_value_s(tmp_path: Path) -> None:
    engine = {"type": "openai", "max_total_tokens": 20_000}
    engines = {"default": {"type": "vllm"}, "api": engine}
    plan = planned(config_of(tmp_path, engines=engines), train__beta=[0.1, 0.3])
    assert [one.partition(":")[0] for one in plan.warnings] == ["shared"]


def test_the_command_prices_and_refuses_as_the_sweep_does(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump(config_of(tmp_path)))
    command = ["plan", str(file), "--sweep", "train.beta=0.03,0.1"]
    said = CliRunner().invoke(app, command)
    assert said.exit_code == 0, said.output
    for words in ("2, over the same answers", "shared", "train.beta=0.03", "train.beta=0.1"):
        assert words in said.output
    found = json.loads(CliRunner().invoke(app, [*command, "--json"]).stdout)
    assert [one["settings"] for one in found["trials"]] == [
        {"train.beta": 0.03}, {"train.beta": 0.1},
    ]  # fmt: skip
    parts = [found["shared"], *found["trials"]]
    assert found["total"]["cost"] == pytest.approx(sum(one["total"]["cost"] for one in parts))
    assert not (tmp_path / "run").exists()
    wrong = CliRunner().invoke(app, ["plan", str(file), "--sweep", "sample.n=2,4"])
    assert isinstance(wrong.exception, ConfigError)
