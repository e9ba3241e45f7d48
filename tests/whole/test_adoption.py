"""Other labels in the place of a run's: nothing sampled or voted is lost, wherever a kill comes."""

from __future__ import annotations

import asyncio
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

import prefloop
from prefloop.labelers.judges.folder import SHIPPED
from prefloop.pipeline.adoption import finish_adoption
from prefloop.pipeline.commands.app import app
from prefloop.pipeline.config import RunConfig
from prefloop.pipeline.relabel.relabel import relabel
from prefloop.pipeline.relabel.relabelled import Relabelled, VotesFrom
from prefloop.pipeline.relabel.wanted import Asked
from prefloop.pipeline.run.run_dir import RunDir, RunError
from prefloop.pipeline.run.status import collect_status
from prefloop.pipeline.stages.invalid_votes import set_aside
from tests.helpers.runs import JUDGE, dataset_rows, run_small, small_config
from tests.whole.test_resume import Killed, killed_at, snapshot

LONG, SHORT = (
    {"type": "verifier", "name": name, "function": f"tests.helpers.scores:{function}"}
    for name, function in (("long", "length"), ("short", "brevity"))
)


def config_of(*labelers: dict[str, Any], **changes: Any) -> RunConfig:
    return small_config(
        label={"labelers": list(labelers)}, **({"filter": {"filters": []}} | changes)
    )


@pytest.fixture(scope="module")
def sampled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run_small(tmp_path_factory.mktemp("sampled") / "run", config_of(JUDGE, LONG)).root


@pytest.fixture(autouse=True)
def no_reports(monkeypatch: pytest.MonkeyPatch) -> None:
    """They take longer than all the rest."""
    for module in ("redecide", "loop", "relabel.relabel"):
        monkeypatch.setattr(f"prefloop.pipeline.{module}.write_report", lambda run: None)


@pytest.fixture
def run(sampled: Path, tmp_path: Path) -> RunDir:
    return RunDir(Path(shutil.copytree(sampled, tmp_path / "run")))


def adopted(run: RunDir, config: RunConfig | None, **options: Any) -> Relabelled:
    return asyncio.run(relabel(run, Asked(config), adopts=True, **options))


def of_the_run(run: RunDir) -> dict[str, bytes]:
    return {name: data for name, data in snapshot(run.root).items() if "relabels/" not in name}


def test_a_judge_is_changed_and_nothing_is_lost(
    run: RunDir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, candidates = of_the_run(run), run.round(0).candidates.path(0).stat()
    changed = config_of({**JUDGE, "temperature": 1.0, "orders": "one"}, LONG)
    with pytest.raises(RunError, match=r"judge.orders: \"both\" -> \"one\".*relabel .* --adopt"):
        run_small(run.root, changed)
    found = adopted(run, changed)
    assert found.votes["judge"].asked == 48
    assert found.kept == run.relabels / "before-001"
    assert snapshot(found.kept) == {
        k: v for k, v in first.items() if k.startswith(("round", "prompt", "dataset"))
    }
    with monkeypatch.context() as patched:  # everything is done
        patched.setattr("prefloop.pipeline.stages.label.label_block", None)
        run_small(run.root, changed)
    fresh = Path(shutil.copytree(run.root, tmp_path / "fresh"))
    for name in ("vote", "decision", "triple", "../dataset", "../relabels"):
        shutil.rmtree(fresh / "round-000" / name)
    (fresh / "round-000" / "written.json").unlink()
    run_small(fresh, changed)
    assert of_the_run(run) == of_the_run(RunDir(fresh))
    assert run.round(0).candidates.path(0).stat().st_ino == candidates.st_ino

    with pytest.raises(RunError, match=r"relabel .* --adopt"):
        run_small(run.root, config_of(JUDGE, LONG))
    back = adopted(run, config_of(JUDGE, LONG))
    assert back.votes == {"judge": VotesFrom(taken=96), "long": VotesFrom(taken=48)}
    assert of_the_run(run) == first
    run_small(run.root, config_of(JUDGE, LONG))
    assert sorted(path.name for path in run.relabels.glob("before-*")) == [
        "before-001",
        "before-002",
    ]
    assert adopted(run, config_of(JUDGE, LONG)).kept is None


def test_a_mended_judge_of_the_run_is_adopted(run: RunDir, tmp_path: Path) -> None:
    mine = Path(shutil.copytree(SHIPPED / "pairwise_short", tmp_path / "mine"))
    config = config_of({**JUDGE, "judge": str(mine), "orders": "one"})
    adopted(run, config)
    for text in ("{# a comment #}", "Be strict."):
        (mine / "prompt.jinja").write_text((mine / "prompt.jinja").read_text() + text)
        with pytest.raises(RunError, match=r"judge .*mine changed since .*relabel [^ ]* --adopt"):
            run_small(run.root, config)
        found = adopted(run, None)
        assert found.votes["judge"].asked == 48
        run_small(run.root, config)


def test_old_and_new_labelers_are_adopted_together(run: RunDir) -> None:
    found = asyncio.run(relabel(run, Asked(SHORT, jury=True), adopts=True))
    assert found.votes["judge"] == VotesFrom(taken=96)
    before = of_the_run(run)
    run_small(run.root, config_of(JUDGE, LONG, SHORT))
    assert of_the_run(run) == before
    names = run.round(0).votes.table(["labeler"])["labeler"].to_pylist()
    assert {name: names.count(name) for name in names} == {"judge": 96, "long": 48, "short": 48}


def test_filters_go_with_the_labels(run: RunDir) -> None:
    changed = config_of(SHORT, filter={"strategy": {"type": "all"}, "filters": []})
    found = adopted(run, changed)
    [change] = found.rounds
    assert change.kept > change.kept_before
    run_small(run.root, changed)
    assert collect_status(run).rounds[0].kept == change.kept


def test_what_costs_nothing_is_changed_by_the_run_itself(run: RunDir, tmp_path: Path) -> None:
    fresh = Path(shutil.copytree(run.root, tmp_path / "fresh"))
    for name in ("decision", "triple", "../dataset"):
        shutil.rmtree(fresh / "round-000" / name)
    (fresh / "round-000" / "written.json").unlink()
    changed = config_of(
        {**JUDGE, "weight": 3.0},
        LONG,
        filter={"strategy": {"type": "all"}, "filters": [{"type": "margin", "min": 0.2}]},
        write={"test_share": 0.5, "unpaired": True},
    )
    run_small(fresh, changed)
    first = of_the_run(run)
    run_small(run.root, changed)
    assert of_the_run(run) == of_the_run(RunDir(fresh))
    assert len(dataset_rows(run)) == 2
    run_small(run.root, config_of(JUDGE, LONG))
    assert of_the_run(run) == first


def test_half_of_the_votes_are_enough_to_begin_with(run: RunDir) -> None:
    folder = run.round(0)
    folder.votes.path(1).unlink()
    folder.forget_decisions()
    changed = config_of(SHORT)
    with pytest.raises(RunError, match=r"relabel .* --adopt"):
        run_small(run.root, changed)
    adopted(run, changed)
    run_small(run.root, changed)
    assert folder.votes.indices() == [0, 1]
    assert set(folder.votes.table(["labeler"])["labeler"].to_pylist()) == {"short"}
    assert RunDir(run.relabels / "before-001").round(0).votes.indices() == [0]


def test_votes_that_were_set_aside_are_kept_and_count_no_more(run: RunDir) -> None:
    folder = run.round(0)
    votes = folder.votes.table()
    set_aside(folder, config_of(JUDGE, LONG).label)
    folder.forget_decisions()
    found = adopted(run, config_of(SHORT))
    assert found.difference.pairs == 0, "nothing was decided before"
    assert not folder.votes_kept.folder.exists()
    assert found.kept is not None
    assert RunDir(found.kept).round(0).votes_kept.table().equals(votes)
    run_small(run.root, config_of(SHORT))
    assert set(folder.votes.table(["labeler"])["labeler"].to_pylist()) == {"short"}


def test_what_was_trained_on_is_not_changed(run: RunDir) -> None:
    run.round(0).policy.mkdir()
    before = of_the_run(run)
    with pytest.raises(RunError, match=r"was trained on .*leave out --adopt"):
        adopted(run, config_of(SHORT))
    assert not run.relabels.exists()
    beside = asyncio.run(relabel(run, Asked(config_of(SHORT))))
    assert beside.rows["train"] > 0
    assert of_the_run(run) == before


def test_more_than_labels_is_not_adopted(run: RunDir) -> None:
    other = config_of(SHORT, engines={"default": {"type": "transformers", "dtype": "bfloat16"}})
    with pytest.raises(RunError, match=r"more than labels would change: engines.default.dtype"):
        adopted(run, other)


@pytest.mark.parametrize("finish", ["run", "relabel"])
def test_adopting_killed_anywhere_is_finished_by_the_next_command(
    run: RunDir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, finish: str
) -> None:
    changed = config_of(SHORT)
    asyncio.run(relabel(run, Asked(changed)))
    first = of_the_run(run)
    clean = RunDir(Path(shutil.copytree(run.root, tmp_path / "clean")))
    adopted(clean, changed)
    expected = of_the_run(clean)
    number = kept = finished = 0
    while True:
        one = RunDir(Path(shutil.copytree(run.root, tmp_path / f"run-{finish}-{number}")))
        try:
            with killed_at(number, monkeypatch):
                adopted(one, changed)
            break
        except Killed:
            pass
        if one.adopting.exists():
            finished += 1
            assert "votes changed" in collect_status(one).state
            assert snapshot(one.relabels / "before-001").items() <= first.items()
        else:
            kept += of_the_run(one) == first
        if finish == "run" and one.adopting.exists():
            run_small(one.root, changed)
        else:
            adopted(one, changed)
        assert of_the_run(one) == expected
        assert not one.decides_again()
        number += 9
    assert finished > 2
    assert kept > 2


def test_a_damaged_marker_is_one_line(run: RunDir) -> None:
    run.adopting.parent.mkdir()
    for text in ("{", "{}", '{"name": "x", "config": {}}'):
        run.adopting.write_text(text)
        with run.lock(), pytest.raises(prefloop.PrefloopError, match=r"adopting\.json") as failed:
            finish_adoption(run)
        assert "\n" not in str(failed.value)


def test_the_command_adopts(run: RunDir, tmp_path: Path) -> None:
    file = tmp_path / "short.yaml"
    file.write_text(yaml.safe_dump(SHORT))
    command = ["relabel", str(run.root), "--judge", str(file), "--adopt"]
    said = CliRunner().invoke(app, command)
    assert said.exit_code == 0, said.output
    assert "before-001" in said.output
    assert "these are the labels of" in said.output
    again = json.loads(CliRunner().invoke(app, [*command, "--json"]).stdout)
    assert (again["adopted"], again["kept"], again["rounds"]) == (True, None, [])
    assert dataset_rows(run) == dataset_rows(RunDir(run.relabels / "short"))
