"""Other labelers for the rounds to come of a run that has trained: each round keeps its own."""

from __future__ import annotations

import asyncio
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from prefloop.pipeline.checking.still_to_ask import wanted_by
from prefloop.pipeline.config import RunConfig, load_config
from prefloop.pipeline.judging.reparse import reparse
from prefloop.pipeline.redecide import redecide
from prefloop.pipeline.relabel.relabel import relabel
from prefloop.pipeline.relabel.relabel_plan import plan_relabel
from prefloop.pipeline.relabel.wanted import Asked
from prefloop.pipeline.report.card import card_text
from prefloop.pipeline.report.headline import headline
from prefloop.pipeline.report.run_page import render_report
from prefloop.pipeline.run.final_split import _labelled
from prefloop.pipeline.run.manifest import open_run
from prefloop.pipeline.run.run_dir import EVALUATION, RunDir, RunError
from tests.helpers.runs import JUDGE, run_small, small_config

LONG = {"type": "verifier", "name": "long", "function": "tests.helpers.scores:length"}
SHORT = {"type": "verifier", "name": "short"}
TRAIN = {"learning_rate": 1e-3, "batch_size": 8, "gradient_accumulation": 1, "max_pairs": 8}


def config_of(*labelers: dict[str, Any], rounds: int, **changes: Any) -> RunConfig:
    label = {"labelers": list(labelers)} | changes.pop("label", {})
    evaluate = {"promote": "always", "samples_per_prompt": 1}
    keys = {"filter": {"filters": []}, "train": TRAIN, "evaluate": evaluate, "rounds": rounds}
    return small_config(label=label, **(keys | changes))


@pytest.fixture(autouse=True)
def no_reports(monkeypatch: pytest.MonkeyPatch) -> None:
    """They take longer than all the rest."""
    for module in ("redecide", "loop", "relabel.relabel"):
        monkeypatch.setattr(f"prefloop.pipeline.{module}.write_report", lambda run: None)


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of one round, labelled by length."""
    return run_small(tmp_path_factory.mktemp("first") / "run", config_of(LONG, rounds=1)).root


@pytest.fixture(scope="module")
def mixed(first: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with another round, labelled by what the prompts ask for."""
    root = Path(shutil.copytree(first, tmp_path_factory.mktemp("mixed") / "run"))
    return run_small(root, config_of(SHORT, rounds=2)).root


def copied(run: Path, folder: Path) -> RunDir:
    return RunDir(Path(shutil.copytree(run, folder / "run")))


def labelers(run: RunDir, index: int) -> set[str]:
    return set(run.round(index).votes.table(["labeler"])["labeler"].to_pylist())


def test_each_round_has_its_labelers_and_says_so(first: Path, mixed: Path) -> None:
    before, run = RunDir(first), RunDir(mixed)
    assert (labelers(run, 0), labelers(run, 1)) == ({"long"}, {"short"})
    for name in ("votes", "decisions", "triples"):
        ours, theirs = (getattr(one.round(0), name).table() for one in (run, before))
        assert ours.equals(theirs)
    judged = [
        {row["labeler"] for row in run.round(index).metrics.read(EVALUATION).to_pylist()
         if row["name"] == "win_rate"}
        for index in (0, 1)
    ]  # fmt: skip
    assert judged == [{"jury", "long"}, {"jury", "short"}]
    kept = json.loads((run.round(0).root / "labels.json").read_text())
    assert [one["name"] for one in kept["label"]["labelers"]] == ["long"]
    assert not (run.round(1).root / "labels.json").exists()
    said = headline(run)
    assert said.count("; by long") == 2
    assert said.count("; by short") == 2
    assert "; by" not in headline(before)
    page = render_report(run)
    assert "Labelled by long; its policy was compared with others by long" in page
    assert "Labelled by short" in page
    assert "Labelled by" not in render_report(before)
    card = card_text(load_config(run.config), run)
    assert "`long`" in card
    assert "`short`" in card
    assert {"long", "short"} <= _labelled(run)


def test_what_is_done_again_is_done_by_each_round_s_labelers(mixed: Path, tmp_path: Path) -> None:
    run = copied(mixed, tmp_path)
    decisions = [run.round(index).decisions.table() for index in (0, 1)]
    votes = run.round(0).votes.table()
    redecide(load_config(run.config), run)
    assert [run.round(index).decisions.table() for index in (0, 1)] == decisions
    run.round(0).votes.path(0).unlink()
    run_small(run.root, config_of(SHORT, rounds=2))
    assert run.round(0).votes.table().equals(votes), "not asked of others"
    assert run.round(0).decisions.table().equals(decisions[0])


def test_another_labeling_takes_over_what_each_round_has(mixed: Path, tmp_path: Path) -> None:
    run = copied(mixed, tmp_path)
    pairs = [run.round(index).votes.rows() for index in (0, 1)]
    [planned] = plan_relabel(run, Asked(SHORT)).labelers
    assert (planned.there, planned.votes) == (pairs[1], pairs[0])
    found = asyncio.run(relabel(run, Asked(SHORT)))
    assert (found.votes["short"].asked, found.votes["short"].taken) == tuple(pairs)
    assert set(found.difference.labelers) == {("long", "short"), ("short", "short")}
    with pytest.raises(RunError, match="leave out --jury"):
        asyncio.run(relabel(run, Asked({**LONG, "name": "third"}, jury=True)))


def test_labelers_may_change_again_and_back(mixed: Path, tmp_path: Path) -> None:
    run = copied(mixed, tmp_path)
    open_run(config_of(LONG, rounds=3), run, revisions={})
    assert load_config(run.config).label.labelers[0].name == "long"
    names = [
        json.loads((run.round(index).root / "labels.json").read_text())["label"]["labelers"][0][
            "name"
        ]
        for index in (0, 1)
    ]
    assert names == ["long", "short"]
    open_run(config_of(SHORT, rounds=3), run, revisions={})  # nothing was labelled meanwhile
    open_run(
        config_of(SHORT, LONG, rounds=3, label={"jury": {"rule": "majority"}}), run, revisions={}
    )
    redecide(load_config(run.config), run)
    assert (labelers(run, 0), labelers(run, 1)) == ({"long"}, {"short"})


def test_only_a_round_to_come_is_labelled_otherwise(first: Path, tmp_path: Path) -> None:
    run = copied(first, tmp_path)
    unchanged = run.config.read_text()

    def refused(config: RunConfig, match: str) -> None:
        with pytest.raises(RunError, match=match):
            open_run(config, run, revisions={})
        assert run.config.read_text() == unchanged
        assert not (run.round(0).root / "labels.json").exists()

    refused(config_of(SHORT, rounds=1), "`rounds` is raised")
    refused(config_of({**SHORT, "name": "long"}, rounds=2), "another `name`")
    refused(config_of(SHORT, rounds=2, sample={"n": 2, "max_tokens": 40}), "sample.n")
    engine = {"default": {"type": "transformers", "dtype": "bfloat16"}}
    refused(config_of(SHORT, rounds=2, engines=engine), "engines.default.dtype")
    metrics = run.round(0).metrics.path(EVALUATION)
    metrics.rename(metrics.with_suffix(".aside"))  # its policy is still to be compared
    refused(config_of(SHORT, rounds=2), "once the rounds that were begun are over")
    metrics.with_suffix(".aside").rename(metrics)
    open_run(config_of(SHORT, rounds=2), run, revisions={})


def test_new_judges_are_checked_before_they_are_asked(first: Path, tmp_path: Path) -> None:
    run = copied(first, tmp_path)
    config = config_of(JUDGE, LONG, rounds=2)
    open_run(config, run, revisions={})
    asked = wanted_by(config, run)
    assert [key for key, _ in asked.labelers] == ["label.labelers.judge"]
    assert not asked.samplers
    assert not wanted_by(config_of(LONG, rounds=1), RunDir(first)).labelers


def test_kept_answers_of_every_round_s_judges_are_read_again(first: Path, tmp_path: Path) -> None:
    judged = config_of(JUDGE, rounds=1, train=None)
    run = run_small(tmp_path / "judged", judged)
    number = run.round(0).votes.rows()
    (run.round(0).root / "labels.json").write_text(
        json.dumps({"label": judged.label.model_dump(mode="json")})
    )
    raw = config_of(LONG, rounds=1, train=None)
    run.config.write_text(json.dumps(raw.model_dump(mode="json")))
    assert reparse(run, write=False).votes == {"judge": number}
