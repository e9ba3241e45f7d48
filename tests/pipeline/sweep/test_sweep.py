"""`prefloop run --sweep`: what is shared, what is refused, what is told at the end."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

import prefloop
from prefloop.data.errors import NothingCameOut
from prefloop.pipeline.commands.app import app
from prefloop.pipeline.config import ConfigError, dump_config
from prefloop.pipeline.run.run_dir import RunDir, RunError
from prefloop.pipeline.sweep.shared_round import open_trial
from prefloop.pipeline.sweep.sweep import Sweep, TrialFigure, TrialResult, run_sweep
from prefloop.pipeline.sweep.sweep_page import write_sweep_page
from prefloop.pipeline.sweep.sweep_text import render_sweep
from prefloop.pipeline.sweep.swept import read_swept, trials
from tests.helpers.runs import VERIFIER, small_config

TRAIN = {"learning_rate": 1e-3, "batch_size": 4, "epochs": 1}


def config_of(root: Path, **changes: Any) -> dict[str, Any]:
    prompts = {
        "train": {"path": "embedded:prompts", "limit": 8},
        "heldout": {"path": "embedded:heldout", "limit": 4},
    }
    config = small_config(
        label={"labelers": [VERIFIER]}, train=TRAIN, **({"prompts": prompts} | changes)
    )
    return config.model_dump(mode="json") | {"run_dir": str(root), "seed": 3}


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A grid of one beta with two strategies, through the command."""
    folder = tmp_path_factory.mktemp("swept")
    file = folder / "config.yaml"
    file.write_text(yaml.safe_dump(config_of(folder / "run")))
    command = ["run", str(file), "--sweep", "train.beta=0.03",
               "--sweep", "filter.strategy={type: best_vs_worst},{type: all}"]  # fmt: skip
    done = CliRunner().invoke(app, command)
    assert done.exception is None, done.stdout
    assert "train.beta" in done.stdout
    assert "best_vs_worst" in done.stdout
    return folder / "run"


def test_everything_is_sampled_and_labelled_once(swept: Path) -> None:
    [result] = swept.glob("sweep/*.json")
    found = json.loads(result.read_text())
    assert found["keys"] == ["train.beta", "filter.strategy"]
    assert len(found["trials"]) == 2
    shared = RunDir(swept).round(0)
    assert not shared.policy.exists()
    for trial in found["trials"]:
        run = RunDir(Path(trial["folder"]))
        assert run.round(0).policy.is_dir()
        assert {"win_rate", "kl", "mean_tokens", "score by verifier"} <= set(trial["figures"])
        ours, theirs = (
            [*one.candidates.folder.glob("*"), *one.votes.folder.glob("*")]
            for one in (run.round(0), shared)
        )
        assert len(ours) == len(theirs) > 0
        assert all(a.samefile(b) for a, b in zip(sorted(ours), sorted(theirs), strict=True))
        resolved = yaml.safe_load(run.config.read_text())
        assert resolved["train"]["beta"] == trial["settings"]["train.beta"]
        assert (
            resolved["filter"]["strategy"]["type"] == (trial["settings"]["filter.strategy"]["type"])
        )
        manifest = json.loads(run.manifest.read_text())
        assert Path(manifest["shared_from"]) == swept.resolve()
    pairs = {
        trial["settings"]["filter.strategy"]["type"]: trial["triples"] for trial in found["trials"]
    }
    assert pairs["all"] > pairs["best_vs_worst"]
    page = Path(found["page"]).read_text()
    assert "Win rate against KL" in page
    assert "train.beta=0.03" in page


def test_asked_again_it_does_nothing_and_another_value_is_added(swept: Path) -> None:
    config = config_of(swept)
    before = {path: path.stat().st_mtime_ns for path in swept.rglob("*.safetensors")}
    assert len(before) == 2
    found = prefloop.sweep(
        config,
        {"train.beta": [0.03, 0.1], "filter.strategy": [{"type": "all"}]},
        check=False,
    )
    assert len(found.trials) == 2
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert len(list(swept.rglob("*.safetensors"))) == 3
    assert "best of 2" in str(found.as_dict()["notes"])


def test_a_trial_on_other_votes_is_refused(swept: Path, tmp_path: Path) -> None:
    import shutil

    root = tmp_path / "run"
    shutil.copytree(swept, root)
    shared, tried = trials(
        config_of(root), (), {"train.beta": [0.03], "filter.strategy": [{"type": "all"}]}, root
    )
    run = RunDir(root)
    assert open_trial(run, tried[0]).round(0).policy.is_dir()
    other = config_of(root) | {"train": {**TRAIN, "epochs": 2}}
    keys = {"train.beta": [0.03], "filter.strategy": [{"type": "all"}]}
    with pytest.raises(RunError, match=r"train\.epochs: 1\.0 -> 2\.0"):  # it is of other settings
        prefloop.sweep(other, keys, check=False)
    votes = run.round(0).votes
    votes.replace(0, votes.read(0).slice(1))
    with pytest.raises(RunError, match="was trained on other answers or votes"):
        open_trial(run, tried[0])
    assert shared.run_dir == str(root)


def test_a_trial_that_fails_is_told_and_the_others_go_on(tmp_path: Path) -> None:
    config = config_of(tmp_path / "run")
    filters = [[{"type": "min_quality", "min": least}] for least in (0.0, 99.0)]
    shared, tried = trials(config, (), {"filter.filters": filters}, tmp_path / "run")
    assert all(len(Path(one.config.run_dir).name) <= 64 for one in tried)
    found = asyncio.run(run_sweep(shared, tried, check=False))
    good, bad = found.trials
    assert good.failed is None
    assert bad.failed is not None
    assert "dropped" in bad.failed
    assert not bad.figures
    assert "failed: " in render_sweep(found)
    write_sweep_page(found)
    assert "failed" in found.page.read_text()
    with pytest.raises(NothingCameOut):
        asyncio.run(run_sweep(shared, tried[1:], check=False))


@pytest.mark.parametrize(
    ("key", "says"),
    [
        ("sample.n=2,4", "sample.n: a sweep samples and labels once"),
        ("label.jury.rule=mean,majority", "only keys of train and filter"),
        ("train=1,2", "only keys of train and filter"),
        ("train.beta=0.1,-1", "--sweep train.beta=-1: config: train.beta"),
        ("train.bta=0.1", "did you mean 'beta'"),
        ("train.beta=", "has no values"),
        ("train.beta", "write it as key=value,value"),
        ("train.beta=0.1,0.1", "has 0.1 twice"),
        ("train.online=false,true", "train.online samples while it trains"),
        ("train.beta=[0.1", "--sweep train.beta"),
    ],
)
def test_what_cannot_be_swept_is_refused_before_any_work(
    key: str, says: str, tmp_path: Path
) -> None:
    root = tmp_path / "run"
    with pytest.raises(ConfigError) as refused:
        prefloop.sweep(config_of(root), [key])
    assert says in str(refused.value)
    assert "\n" not in str(refused.value)
    assert not root.exists()


def test_a_sweep_needs_training_and_evaluation(tmp_path: Path) -> None:
    config = config_of(tmp_path / "run")
    with pytest.raises(ConfigError, match="add a `train:` section"):
        prefloop.sweep({**config, "train": None}, ["filter.strategy={type: all}"])
    off = {**config, "evaluate": {"enabled": False}}
    with pytest.raises(ConfigError, match=r"set evaluate\.enabled: true"):
        prefloop.sweep(off, ["train.beta=0.1"])
    with pytest.raises(ConfigError, match="set and swept"):
        prefloop.sweep(config, ["train.beta=0.1"], overrides={"train.beta": 1})
    with pytest.raises(ConfigError, match="given twice"):
        read_swept(["train.beta=0.1", "train.beta=0.2"])


def test_the_page_takes_no_markup_out_of_values(tmp_path: Path) -> None:
    attack = "<script>alert(1)</script>"
    figures = {
        name: TrialFigure(0.5, 0.4, 0.6) for name in ("kl", "win_rate", f"score by {attack}")
    }
    one = TrialResult(attack, {attack: attack}, tmp_path, 0, 3, figures, attack)
    found = Sweep(tmp_path, (attack,), (one, one), tmp_path / "page.html")
    write_sweep_page(found)
    assert "<script" not in found.page.read_text()


def test_the_run_that_is_shared_goes_on_as_any(tmp_path: Path) -> None:
    """What a sweep sampled and labelled is what `prefloop run` makes with the same config."""
    config = config_of(tmp_path / "run")
    shared, tried = trials(config, (), {"train.beta": [0.1]}, tmp_path / "run")
    asyncio.run(run_sweep(shared, tried, check=False))
    run = prefloop.run(config, check=False)
    alone = prefloop.run(config, run_dir=tmp_path / "alone", check=False)
    trial = RunDir(Path(tried[0].config.run_dir))
    assert yaml.safe_load(dump_config(shared))["train"]["beta"] == 0.1
    tables = [RunDir(one.path).round(0).metrics.read(1).to_pylist() for one in (run, alone)]
    assert tables[0] == tables[1] == trial.round(0).metrics.read(1).to_pylist()
