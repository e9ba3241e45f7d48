import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from prefloop.pipeline import redecide
from prefloop.pipeline.commands.app import app
from prefloop.pipeline.config import RunConfig
from prefloop.pipeline.judging.reparse import reparse
from prefloop.pipeline.run.run_dir import RunDir, RunError
from tests.helpers.paths import ROOT
from tests.helpers.runs import JUDGE, VERIFIER, dataset_rows, run_small, small_config

SHORT = ROOT / "labelers/judges/shipped/pairwise_short"


def judge_folder(folder: Path, min_mass: float) -> Path:
    """The short judge with another threshold."""
    folder.mkdir(exist_ok=True)
    shutil.copy(SHORT / "prompt.jinja", folder)
    settings = (SHORT / "judge.yaml").read_text() + f"\nmin_mass: {min_mass}\n"
    (folder / "judge.yaml").write_text(settings)
    return folder


def config(judge: Path) -> RunConfig:
    judge_config = {**JUDGE, "judge": str(judge)}
    # The first judge is to give invalid votes.
    return small_config(label={"labelers": [judge_config, VERIFIER], "max_invalid": None})


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    """A run whose judge hardly ever spoke clearly enough."""
    return run_small(tmp_path / "run", config(judge_folder(tmp_path / "judge", 0.99999)))


def test_answers_read_again_give_the_dataset_of_a_new_run(tmp_path: Path, run: RunDir) -> None:
    strict = run.round(0).votes.table()
    judge_folder(tmp_path / "judge", 0.5)
    found = reparse(run, write=False)
    changed = sum(found.changes["judge"].values())
    assert changed > 0
    assert all(before == "invalid" for before, _ in found.changes["judge"])
    assert found.rounds == []
    assert run.round(0).votes.table().equals(strict)

    written = reparse(run, write=True)
    assert written.changes == found.changes
    fresh = run_small(tmp_path / "fresh", config(tmp_path / "judge"))
    assert run.round(0).votes.table().equals(fresh.round(0).votes.table())
    assert dataset_rows(run) == dataset_rows(fresh)
    [change] = written.rounds
    assert change.kept == fresh.round(0).decisions.table()["kept"].to_pylist().count(True)
    assert change.kept == change.kept_before + change.added - change.removed
    assert change.added + change.turned > 0

    resumed = run_small(run.root, config(tmp_path / "judge"))
    assert dataset_rows(resumed) == dataset_rows(fresh)
    assert sum(map(len, reparse(run, write=True).changes.values())) == 0


def test_killed_while_deciding_again_it_compares_with_the_first_state(
    tmp_path: Path, run: RunDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = shutil.copytree(run.root, tmp_path / "other")
    judge_folder(tmp_path / "judge", 0.5)

    def killed(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(redecide, "write_round", killed)
        with pytest.raises(KeyboardInterrupt):
            reparse(run, write=True)
    with pytest.raises(RunError, match="changed since"):
        run_small(run.root, config(tmp_path / "judge"))
    again = reparse(run, write=True)
    assert again.rounds == reparse(RunDir(whole), write=True).rounds
    assert dataset_rows(run) == dataset_rows(RunDir(whole))
    assert not (run.round(0).root / "decision-before").exists()


def test_answers_to_another_question_are_not_read(tmp_path: Path, run: RunDir) -> None:
    template = tmp_path / "judge" / "prompt.jinja"
    template.write_text(template.read_text() + "Be quick.")
    before = dataset_rows(run)
    with pytest.raises(RunError, match="asks otherwise"):
        reparse(run, write=True)
    assert dataset_rows(run) == before


def test_the_command_says_what_would_change(tmp_path: Path, run: RunDir) -> None:
    judge_folder(tmp_path / "judge", 0.5)
    said = CliRunner().invoke(app, ["reparse", str(run.root)])
    assert said.exit_code == 0
    assert "invalid -> a:" in said.output
    assert "--write" in said.output
    said = CliRunner().invoke(app, ["reparse", str(run.root), "--write", "--json"])
    assert '"kept_before"' in said.output


def test_a_run_without_a_judge_has_nothing_to_read(tmp_path: Path) -> None:
    run = run_small(tmp_path, small_config(label={"labelers": [VERIFIER]}))
    with pytest.raises(RunError, match="no judge"):
        reparse(run, write=False)
