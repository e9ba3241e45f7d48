"""Juries in a whole run: fitted once, kept, used again after a kill and in the evaluation."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from prefloop.data.errors import NothingCameOut
from prefloop.labelers.base import LabelerError
from prefloop.labelers.jury.calibrator import Calibrator
from prefloop.pipeline.config import RunConfig
from prefloop.pipeline.redecide import redecide
from prefloop.pipeline.run.run_dir import RunDir, RunError
from tests.helpers.runs import JUDGE, VERIFIER, dataset_rows, run_small, small_config

SHORT = {
    "type": "verifier",
    "name": "short",
    "function": "tests.whole.test_jury_round:prefers_short",
}
PLATT = Calibrator("platt", n=500, slope=0.5)


def prefers_short(text: str, **_: Any) -> float:
    return -float(len(text))


def config_of(jury: dict[str, Any], *, judge: dict[str, Any] | None = None, **more: Any):
    labelers = [judge or JUDGE, VERIFIER, SHORT]
    return small_config(label={"labelers": labelers, "jury": jury}, filter={"filters": []}, **more)


@pytest.mark.parametrize("rule", ["reliability", "dawid_skene"])
def test_a_jury_is_fitted_once_and_decides_alike_after_a_kill(tmp_path: Path, rule: str) -> None:
    config = config_of({"rule": rule})
    run = run_small(tmp_path / "run", config)
    kept = json.loads(run.round(0).jury.read_text())
    assert kept["rule"] == rule
    assert set(kept["accuracy"] or kept["confusions"]) == {"judge", "verifier", "short"}
    expected, dataset = run.round(0).decisions.table(), dataset_rows(run)
    # Killed behind the first block, before anything was written.
    run.round(0).decisions.own_file(1).unlink()
    run.round(0).written.unlink()
    shutil.rmtree(run.dataset)
    resumed = run_small(run.root, config)
    assert resumed.round(0).decisions.table().equals(expected)
    assert dataset_rows(resumed) == dataset
    # Decided again from scratch, the same votes give the same jury.
    with run.lock():
        redecide(config, run)
    assert json.loads(run.round(0).jury.read_text()) == kept
    assert run.round(0).decisions.table().equals(expected)


def test_the_evaluation_decides_with_the_jury_of_the_round(tmp_path: Path) -> None:
    config = config_of({"rule": "dawid_skene"}, train={"learning_rate": 1e-4, "batch_size": 8})
    run = run_small(tmp_path / "run", config)
    assert run.round(0).jury.exists()
    rates = [row for row in run.round(0).metrics.table().to_pylist() if row["name"] == "win_rate"]
    assert {row["labeler"] for row in rates} == {"jury", "judge", "verifier", "short"}


def test_a_calibration_changes_the_soft_votes_and_is_an_input_of_the_run(tmp_path: Path) -> None:
    path = tmp_path / "calibration.json"
    path.write_text(json.dumps({"calibration": PLATT.as_dict()}))
    only_judge = {"labelers": [{**JUDGE, "calibration": str(path)}]}
    config = small_config(label=only_judge, filter={"filters": []})
    run = run_small(tmp_path / "run", config)
    plain = run_small(tmp_path / "plain", small_config(label={"labelers": [JUDGE]},
                                                       filter={"filters": []}))  # fmt: skip
    calibrated, raw = (
        one.round(0).decisions.table().to_pandas().set_index("pair_id") for one in (run, plain)
    )
    assert run.round(0).votes.table().equals(plain.round(0).votes.table())
    both = calibrated["p_chosen"].to_numpy(), raw["p_chosen"].to_numpy()
    surer = both[1] > 0.55
    assert surer.any()
    assert (both[0][surer] < both[1][surer]).all()
    votes = run.round(0).votes.path(0).stat().st_mtime_ns
    path.write_text(json.dumps({"calibration": Calibrator("platt", 500, slope=0.9).as_dict()}))
    run_small(run.root, config)
    milder = run.round(0).decisions.table().to_pandas().set_index("pair_id")["p_chosen"].to_numpy()
    assert (milder[surer] > both[0][surer]).all()
    assert run.round(0).votes.path(0).stat().st_mtime_ns == votes
    run.round(0).policy.mkdir()
    path.write_text(json.dumps({"calibration": PLATT.as_dict()}))
    with pytest.raises(RunError, match="calibration of judge changed"):
        run_small(run.root, config)


def test_a_tied_run_is_decided_by_another_jury_and_nobody_is_asked(tmp_path: Path) -> None:
    long = SHORT | {"name": "long", "function": "tests.helpers.scores:length"}

    def config(**jury: Any) -> RunConfig:
        weight = jury.pop("weight", 1.0)
        label = {"labelers": [long, {**SHORT, "weight": weight}], "jury": jury}
        return small_config(label=label, filter={"filters": []})

    with pytest.raises(NothingCameOut, match=r"by tie: change `label.jury`"):
        run_small(tmp_path, config(rule="majority"))
    folder = RunDir(tmp_path).round(0)
    votes = [folder.votes.path(at).stat().st_mtime_ns for at in folder.votes.indices()]
    run = run_small(tmp_path, config(rule="mean", weight=2.0))
    first = dataset_rows(run)
    assert sum(map(len, first.values())) > 10
    assert all(row["chosen_tokens"] for rows in first.values() for row in rows)
    second = dataset_rows(run_small(tmp_path, config(rule="mean", weight=0.5)))
    pairs = [
        {(row["chosen_id"], row["rejected_id"]) for rows in each.values() for row in rows}
        for each in (first, second)
    ]
    assert pairs[1] & {(rejected, chosen) for chosen, rejected in pairs[0]}
    assert not pairs[1] & pairs[0]
    assert votes == [folder.votes.path(at).stat().st_mtime_ns for at in folder.votes.indices()]


def test_a_calibration_that_is_none_is_refused_before_anything_is_sampled(tmp_path: Path) -> None:
    missing = {"labelers": [{**JUDGE, "calibration": str(tmp_path / "none.json")}]}
    with pytest.raises(LabelerError, match=r"none\.json: the calibration cannot be read"):
        run_small(tmp_path / "run", small_config(label=missing))
    assert RunDir(tmp_path / "run").rounds() == []
