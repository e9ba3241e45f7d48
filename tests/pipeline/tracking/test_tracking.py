"""Trackers as they are: what is in their own files afterwards."""

from __future__ import annotations

import json
import logging
import os
import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

import prefloop
from prefloop.data.errors import InputError
from prefloop.pipeline.config import RunConfig, load_config
from prefloop.pipeline.run.manifest import open_run
from prefloop.pipeline.run.run_dir import RunDir, RunError
from prefloop.pipeline.tracking import teller as teller_module
from prefloop.pipeline.tracking import trackers as trackers_module
from prefloop.pipeline.tracking.trackers import require_trackers, round_figures, trackers_of
from prefloop.training.session.records import history_of
from tests.helpers.synthetic_run import write_run

STEPS = 40


def config_of(tracker: str) -> RunConfig:
    return load_config(
        {
            "prompts": {"train": {"path": "embedded:prompts"}},
            "label": {"labelers": [{"type": "judge", "model": "fox/judge"}]},
            "engines": {
                "default": {
                    "type": "transformers",
                    "chat_template_kwargs": {"api_key": "hunter2-hunter2"},
                }
            },
            "tracking": [tracker],
        }
    )


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    found = write_run(tmp_path / "fox")
    found.report.write_text("<p>report</p>")
    return found


def tell_all(config: RunConfig, run: RunDir, *, live: int = 0) -> None:
    """A run as its trackers hear of it: ``live`` steps of round 0 while it trains, then all."""
    with trackers_of(config, run) as trackers:
        for step in range(1, live + 1):
            trackers.step(0, {"loss": 1.0 / step, "step": step, "total_steps": STEPS, "epoch": 0.1})
        for folder in run.rounds():
            trackers.round(folder)
        trackers.report()


def trackio_rows(home: Path) -> list[tuple[str, int, dict[str, float]]]:
    (file,) = home.glob("*.db")
    with sqlite3.connect(file) as database:
        found = database.execute(
            "select run_name, step, metrics from metrics order by id"
        ).fetchall()
    return [(name, step, json.loads(metrics)) for name, step, metrics in found]


def test_trackio_has_every_step_and_round_once_also_after_a_resume(
    run: RunDir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    home = tmp_path / "trackio"
    monkeypatch.setenv("TRACKIO_DIR", str(home))
    config = config_of("trackio")
    with trackers_of(config, run) as trackers:  # killed after 5 steps, of which 2 come again
        for step in range(1, 6):
            trackers.step(0, {"loss": 9.0, "step": step, "total_steps": STEPS})
    tell_all(config, run, live=7)
    tell_all(config, run, live=7)
    rows = trackio_rows(home)
    for name in ("fox-round-000", "fox-round-001"):
        steps = [step for one, step, values in rows if one == name and "loss" in values]
        assert steps == list(range(1, STEPS + 1))
        (figures,) = [values for one, _, values in rows if one == name and "round/kept" in values]
        folder = run.round(int(name[-1]))
        assert figures["round/kept"] == folder.triples.rows()
        assert figures == pytest.approx(round_figures(folder))
    losses = [
        values["loss"] for one, _, values in rows if one == "fox-round-000" and "loss" in values
    ]
    assert losses[:7] == pytest.approx([9.0] * 5 + [1 / 6, 1 / 7])
    reports = [
        path for path in home.rglob("*") if path.is_file() and path.read_bytes() == b"<p>report</p>"
    ]
    assert len(reports) == 1
    assert b"hunter2-hunter2" not in b"".join(path.read_bytes() for path in home.rglob("*.db*"))
    assert capfd.readouterr() == ("", "")


def test_tensorboard_has_the_curves_and_the_figures(run: RunDir) -> None:
    tell_all(config_of("tensorboard"), run, live=3)
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    folder = run.root / "tracking" / "tensorboard" / "fox-round-001"
    found = EventAccumulator(str(folder), {"tensors": 0}).Reload()
    assert [one.step for one in found.Tensors("loss")] == list(range(1, STEPS + 1))
    (kept,) = found.Tensors("round/kept")
    assert kept.tensor_proto.float_val[0] == run.round(1).triples.rows()


def test_wandb_keeps_a_run_a_round_offline(run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    tell_all(config_of("wandb"), run)
    kept = sorted((run.root / "tracking" / "wandb").glob("offline-run-*/run-*.wandb"))
    assert [path.stem[-3:] for path in kept] == ["000", "001"]
    assert all(b"rewards/margins" in path.read_bytes() for path in kept)
    assert all(b"fox-round-00" in path.read_bytes() for path in kept)
    assert all(b"hunter2-hunter2" not in path.read_bytes() for path in kept)


def test_one_that_fails_is_one_warning(
    run: RunDir, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("WANDB_MODE", "online")
    monkeypatch.setenv("WANDB_API_KEY", "no-key-of-anybody")
    with caplog.at_level(logging.WARNING):
        tell_all(config_of("wandb"), run)
    (said,) = [record.getMessage() for record in caplog.records]
    assert said.startswith("tracking: wandb failed and is told no more (")
    assert said.endswith("): the run itself goes on")
    assert "no-key-of-anybody" not in said
    assert not (
        run.root / "tracking" / "wandb.json"
    ).exists()  # it hears of all when it works again


def test_one_that_hangs_is_left(
    run: RunDir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "hangs").mkdir()
    (tmp_path / "hangs" / "trackio.py").write_text("import threading\nthreading.Event().wait()\n")
    path = os.pathsep.join([str(tmp_path / "hangs"), os.environ.get("PYTHONPATH", "")])
    monkeypatch.setenv("PYTHONPATH", path)
    monkeypatch.setattr(teller_module, "PATIENCE_S", 0.2)
    with caplog.at_level(logging.WARNING):
        tell_all(config_of("trackio"), run, live=20_000)  # more than a pipe holds
    (said,) = [record.getMessage() for record in caplog.records]
    assert said == "tracking: trackio did not end in 0 s and was left: the run itself is whole"


def test_a_missing_library_is_said_before_any_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trackers_module, "find_spec", lambda name: None)
    with pytest.raises(
        InputError, match=r"wandb is not installed: `pip install 'prefloop\[wandb\]'"
    ):
        require_trackers(["wandb"])
    config = config_of("wandb").model_copy(update={"run_dir": str(tmp_path / "run")})
    with pytest.raises(InputError, match="wandb is not installed"):
        prefloop.run(config)
    assert not (tmp_path / "run" / "config.yaml").exists()


def test_trackers_may_be_changed_when_a_run_is_gone_on_with(run: RunDir) -> None:
    config = config_of("trackio")
    shutil.rmtree(run.root)
    run.root.mkdir()
    none = config.model_copy(update={"tracking": ()})
    open_run(none, run, revisions={})
    run.prompt_counts.write_text("{}")
    open_run(config, run, revisions={})
    with pytest.raises(RunError, match="seed"):
        open_run(config.model_copy(update={"seed": 1}), run, revisions={})


def test_the_process_ends_with_the_run_that_was_killed(run: RunDir, tmp_path: Path) -> None:
    """What was told before is in the tracker."""
    lines = [
        json.dumps({"name": "fox", "id": "1", "folder": str(run.tracking), "config": {}}),
        json.dumps({"round": 0, "step": 1, "values": {"loss": 1.0}}),
    ]
    subprocess.run(
        [sys.executable, "-m", "prefloop.pipeline.tracking.sender", "trackio"],
        input="\n".join(lines) + "\n",
        env=os.environ | {"TRACKIO_DIR": str(tmp_path / "trackio")},
        text=True,
        check=True,
    )
    assert [values["loss"] for _, _, values in trackio_rows(tmp_path / "trackio")] == [1.0]


def test_a_training_alone_is_told_step_by_step_and_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "trackio"
    monkeypatch.setenv("TRACKIO_DIR", str(home))
    pairs = [
        {"prompt": f"Say {i}", "chosen": f"The fox says {i}.", "rejected": f"{i}, he said, {i}."}
        for i in range(12)
    ]
    table = pd.DataFrame(pairs)
    out = tmp_path / "made" / "policy"

    def train(**more: Any) -> Any:
        settings = {"batch_size": 4, "learning_rate": 1e-5}
        return prefloop.train(
            table[:8], test=[table[8:]], method="dpo", base="embedded:policy", out=out,
            overrides=settings, **more,
        )  # fmt: skip

    trained = train(tracking=["trackio"])
    rows = trackio_rows(home)
    ((name, *_), *_) = rows
    assert name.startswith("policy-")
    assert {one for one, *_ in rows} == {name}
    steps = {step: values["loss"] for _, step, values in rows if "loss" in values}
    assert steps == pytest.approx({line["step"]: line["loss"] for line in history_of(out)})
    assert len(steps) == trained.steps >= 2
    (figures,) = [values for _, _, values in rows if "training/steps" in values]
    assert figures["training/examples"] == 8
    assert figures["held_out/accuracy"] == pytest.approx(trained.heldout.value)
    train(tracking=["trackio"])  # which is there already
    assert trackio_rows(home) == rows
    assert json.loads((out.parent / "policy-tracking" / "trackio.json").read_text())
    with pytest.raises(InputError, match="'mlflow' is none of trackio, wandb, tensorboard"):
        train(tracking=["mlflow"])


def test_a_tracker_that_comes_later_hears_of_a_training_that_is_there(tmp_path: Path) -> None:
    pairs = [{"prompt": f"Say {i}", "chosen": f"Fox {i}.", "rejected": f"{i}."} for i in range(4)]
    out = tmp_path / "reward"
    for tracking in ((), ("tensorboard",)):
        prefloop.train(
            pd.DataFrame(pairs), method="reward", base="embedded:policy", out=out,
            tracking=tracking, overrides={"batch_size": 2},
        )  # fmt: skip
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    (folder,) = (tmp_path / "reward-tracking" / "tensorboard").iterdir()
    found = EventAccumulator(str(folder), {"tensors": 0}).Reload()
    assert [one.step for one in found.Tensors("loss")] == [line["step"] for line in history_of(out)]
