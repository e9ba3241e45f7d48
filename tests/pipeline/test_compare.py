"""`prefloop evaluate`: two policies on held-out prompts, without a run."""

from __future__ import annotations

import asyncio
import json
import shutil
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from prefloop.labelers.judges.folder import SHIPPED
from prefloop.labelers.jury.calibrator import Calibrator
from prefloop.pipeline.commands.app import app
from prefloop.pipeline.policies.compare import evaluate_policy
from prefloop.pipeline.run.run_dir import RunDir, RunError
from tests.helpers.runs import JUDGE, run_small, small_config

TRAIN = {"learning_rate": 1e-3, "batch_size": 4, "epochs": 2}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    return run_small(tmp_path_factory.mktemp("evaluated") / "run", small_config(train=TRAIN))


def test_it_says_what_the_run_measured(run: RunDir, tmp_path: Path) -> None:
    """The same policies, prompts, seeds and labelers as in the run give the same figures."""
    command = ["evaluate", str(run.round(0).policy), "--against", "embedded:policy",
               "--config", str(run.config), "--out", str(tmp_path / "out")]  # fmt: skip
    done = CliRunner().invoke(app, [*command, "--json"])
    assert done.exception is None
    found = json.loads(done.stdout)
    ours = {(row["name"], row["labeler"], row["against"]): row for row in found["figures"]}
    names = ("win_rate", "length_controlled_win_rate", "kl", "mean_tokens", "truncated_share")
    compared = 0
    for row in run.round(0).metrics.table().to_pylist():
        if row["name"] not in names or row["against"] == "previous":
            continue
        against = "other" if row["against"] == "start" else None
        mine = ours[row["name"], row["labeler"], against]
        for column in ("value", "low", "high", "n"):
            assert mine[column] == pytest.approx(row[column])
        compared += 1
    assert compared >= 6
    # Asked again, everything is there.
    shards = sorted((tmp_path / "out").rglob("part-*.parquet"))
    before = [path.stat().st_mtime_ns for path in shards]
    again = CliRunner().invoke(app, command)
    assert "length-controlled" in again.stdout
    assert [path.stat().st_mtime_ns for path in shards] == before


def test_a_policy_against_itself_is_even(run: RunDir, tmp_path: Path) -> None:
    raw = yaml.safe_load(run.config.read_text())
    raw["label"]["jury"]["rule"] = "reliability"  # fitted to the votes of the match
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump(raw))
    done = CliRunner().invoke(
        app,
        ["evaluate", "embedded:policy", "--against", "embedded:policy", "--config", str(config),
         "--out", str(tmp_path / "out"), "--json"],
    )  # fmt: skip
    assert done.exception is None
    figures = {(row["name"], row["labeler"]): row for row in json.loads(done.stdout)["figures"]}
    assert figures["win_rate", "jury"]["value"] == 0.5
    assert figures["kl", None]["value"] == pytest.approx(0, abs=1e-6)


def test_kl_does_not_depend_on_how_answers_are_drawn_for_win_rates(
    run: RunDir, tmp_path: Path
) -> None:
    """Greedy answers are the likeliest ones, and say nothing of KL."""
    found = {}
    for name, temperature in (("own", 1.0), ("greedy", 0.0)):
        raw = yaml.safe_load(run.config.read_text())
        raw["evaluate"] |= {"temperature": temperature, "samples_per_prompt": 2}
        raw["prompts"]["heldout"]["limit"] = 60
        config, out = tmp_path / f"{name}.yaml", tmp_path / name
        config.write_text(yaml.safe_dump(raw))
        done = CliRunner().invoke(
            app, ["evaluate", str(run.round(0).policy), "--against", "embedded:policy",
                  "--config", str(config), "--out", str(out), "--json"],
        )  # fmt: skip
        assert done.exception is None
        rows = json.loads(done.stdout)["figures"]
        found[name] = next(row for row in rows if row["name"] == "kl")
        [folder] = [path for path in out.iterdir() if path.is_dir()]
        asked = RunDir(folder)
        assert asked.untempered(1).rows() == (60 if name == "greedy" else 0)
        assert asked.untempered(0).rows() == 0
    own, greedy = found["own"], found["greedy"]
    assert (own["n"], greedy["n"]) == (120, 60)
    assert own["low"] < greedy["value"] < own["high"]


@pytest.mark.parametrize("changed", ["heldout", "judge", "calibration", "engine"])
def test_whatever_changes_an_answer_changes_the_folder(
    changed: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    folders = []

    async def stop(*_: object) -> None:
        raise RunError("far enough")

    def noted(root: Path) -> RunDir:
        folders.append(root)
        return RunDir(root)

    monkeypatch.setattr("prefloop.pipeline.policies.compare.answer_heldout", stop)
    monkeypatch.setattr("prefloop.pipeline.policies.compare.RunDir", noted)
    judge = tmp_path / "judge"
    shutil.copytree(SHIPPED / "pairwise", judge)
    calibration = tmp_path / "calibration.json"
    fitted = Calibrator.fit([0.7] * 30, [1.0] * 20 + [0.0] * 10, "platt")
    calibration.write_text(json.dumps({"calibration": fitted.as_dict()}))
    heldout = tmp_path / "heldout.jsonl"
    heldout.write_text(json.dumps({"prompt": "Name a fruit that is red."}))

    def compare(dtype: str) -> None:
        labeler = {**JUDGE, "judge": str(judge), "calibration": str(calibration)}
        config = small_config(
            train=TRAIN,
            label={"labelers": [labeler]},
            prompts={
                "train": {"path": "embedded:prompts", "limit": 16},
                "heldout": {"path": "~/heldout.jsonl"},
            },
            engines={"default": {"type": "transformers", "device": "cpu", "dtype": dtype}},
        )
        one = "embedded:policy"
        with pytest.raises(RunError, match="far enough"):
            asyncio.run(evaluate_policy(config, policy=one, against=one, out=tmp_path / "out"))

    compare("float32")
    compare("float32")
    if changed == "heldout":
        heldout.write_text(json.dumps({"prompt": "Name a fruit that is green."}))
    elif changed == "judge":
        (judge / "prompt.jinja").write_text((judge / "prompt.jinja").read_text() + "Be strict.")
    elif changed == "calibration":
        fitted = Calibrator.fit([0.7] * 30, [1.0] * 30, "platt")
        calibration.write_text(json.dumps({"calibration": fitted.as_dict()}))
    compare("bfloat16" if changed == "engine" else "float32")
    first, same, other = folders
    assert first == same != other


def test_mistakes_are_one_line(run: RunDir, tmp_path: Path) -> None:
    done = CliRunner().invoke(
        app, ["evaluate", str(tmp_path / "none"), "--against", "embedded:policy",
              "--config", str(run.config), "--out", str(tmp_path)],
    )  # fmt: skip
    assert "no such folder" in str(done.exception)
