"""A strategy that keeps pairs across policies: no vote is asked on others, where some are drawn."""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from prefloop.pipeline.config import RunConfig, load_config
from prefloop.pipeline.redecide import redecide
from prefloop.pipeline.relabel.relabel import relabel
from prefloop.pipeline.relabel.wanted import Asked
from prefloop.pipeline.run.run_dir import RunDir, RunError
from prefloop.pipeline.sweep.shared_round import open_trial, share_round
from prefloop.pipeline.sweep.swept import Trial
from tests.helpers.runs import run_small, small_config

POOL = [{"name": "one", "n": 2}, {"name": "two", "n": 2, "temperature": 0.5}]
LENGTH = {"type": "verifier", "name": "length", "function": "tests.helpers.scores:length"}
ACROSS = {"strategy": {"type": "across_policies", "choose": "all"}, "filters": []}


@pytest.fixture(autouse=True)
def no_reports(monkeypatch: pytest.MonkeyPatch) -> None:
    """They take longer than all the rest."""
    for module in ("redecide", "loop", "relabel.relabel"):
        monkeypatch.setattr(f"prefloop.pipeline.{module}.write_report", lambda run: None)


def config_of(label: dict[str, Any] | None = None, **changes: Any) -> RunConfig:
    more = {"pairs_per_prompt": 2} if label is None else label
    return small_config(
        sample={"max_tokens": 16, "pool": POOL},
        label={"labelers": [LENGTH], **more},
        **({"filter": ACROSS} | changes),
    )


def voted(run: RunDir) -> tuple[int, int]:
    """Pairs across policies, and others, that have votes."""
    policies = {
        row["candidate_id"]: row["policy"]
        for row in run.round(0).candidates.table(["candidate_id", "policy"]).to_pylist()
    }
    across = [
        policies[row["a_id"]] != policies[row["b_id"]]
        for row in run.round(0).votes.table(["a_id", "b_id"]).to_pylist()
    ]
    return sum(across), len(across) - sum(across)


@pytest.fixture(scope="module")
def narrow(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run_small(tmp_path_factory.mktemp("narrow") / "run", config_of()).root


def test_votes_are_asked_only_on_pairs_that_can_be_kept(narrow: Path) -> None:
    run = RunDir(narrow)
    assert load_config(run.config).label.pairs == "across_policies"
    across, others = voted(run)
    assert across > 20
    assert others == 0
    decisions = run.round(0).decisions.table()
    assert len(decisions) == across
    assert "pair_strategy" not in decisions["reason"].to_pylist()


def test_other_filters_decide_the_same_pairs_again(narrow: Path, tmp_path: Path) -> None:
    run = RunDir(Path(shutil.copytree(narrow, tmp_path / "run")))
    before = run.round(0).votes.table()
    other = {"strategy": {"type": "best_vs_worst"}, "filters": []}
    run_small(run.root, config_of(filter=other))
    assert run.round(0).votes.table().equals(before)
    assert len(run.round(0).decisions.table()) == len(before)
    with pytest.raises(RunError, match=r'label.pairs: "across_policies" -> "all"'):
        run_small(run.root, config_of({"pairs_per_prompt": 2, "pairs": "all"}))


def test_a_run_of_an_older_version_goes_on_as_it_began(tmp_path: Path) -> None:
    config = config_of()
    run = run_small(tmp_path / "run", config_of({"pairs_per_prompt": 2, "pairs": "all"}))
    across, others = voted(run)
    assert across
    assert others  # judged, and never kept
    raw = yaml.safe_load(run.config.read_text())
    del raw["label"]["pairs"]
    run.config.write_text(yaml.safe_dump(raw))
    votes, decisions = run.round(0).votes.table(), run.round(0).decisions.table()
    redecide(load_config(run.config), run)
    assert run.round(0).decisions.table().equals(decisions)
    run.round(0).votes.path(1).unlink()
    run_small(run.root, config)
    assert run.round(0).votes.table().equals(votes)
    assert run.round(0).decisions.table().equals(decisions)


@pytest.mark.parametrize(
    "changes",
    [
        {"label": {}},  # all pairs: the scores are means over them
        {"filter": {"strategy": {"type": "best_vs_worst"}, "filters": []}},
    ],
)
def test_other_runs_are_as_they_were(tmp_path: Path, changes: dict[str, Any]) -> None:
    run = run_small(tmp_path / "run", config_of(**changes))
    assert load_config(run.config).label.pairs == "all"
    assert voted(run)[1] > 0


def test_all_pairs_across_policies_and_no_other(tmp_path: Path) -> None:
    run = run_small(tmp_path / "run", config_of({"pairs": "across_policies"}))
    assert voted(run)[1] == 0


def test_other_labels_are_about_the_same_pairs(narrow: Path, tmp_path: Path) -> None:
    run = RunDir(Path(shutil.copytree(narrow, tmp_path / "run")))
    brief = {**LENGTH, "name": "brief", "function": "tests.helpers.scores:brevity"}
    pairs = run.round(0).votes.rows()
    together = asyncio.run(relabel(run, Asked(brief, jury=True)))
    assert together.votes["length"].taken == together.votes["brief"].asked == pairs
    whole = config_of({"labelers": [brief], "pairs_per_prompt": 2}, filter={"filters": []})
    assert "pairs" not in whole.label.model_fields_set
    assert asyncio.run(relabel(run, Asked(whole))).votes["brief"].asked == 0  # has it already


def test_a_sweep_decides_the_pairs_that_its_shared_round_has(tmp_path: Path) -> None:
    keys = {"train": {"max_pairs": 1}, "rounds": 1}
    shared = RunDir(tmp_path / "shared")
    asyncio.run(share_round(config_of(**keys), shared, check=False))
    assert voted(shared)[1] == 0
    other = config_of(**keys, filter={"strategy": {"type": "all"}, "filters": []})
    trial = Trial({"filter.strategy": "all"}, other.model_copy(
        update={"run_dir": str(tmp_path / "trial")}))  # fmt: skip
    assert load_config(open_trial(shared, trial).config).label.pairs == "across_policies"
