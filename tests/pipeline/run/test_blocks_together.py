"""Runs whose files hold several blocks each are the runs that they would be without."""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path

import pytest

from prefloop.pipeline.relabel.relabel import relabel
from prefloop.pipeline.relabel.relabelled import Relabelled
from prefloop.pipeline.relabel.wanted import Asked
from prefloop.pipeline.run import spans
from prefloop.pipeline.run.run_dir import RunDir
from prefloop.pipeline.run.spans import put_together
from tests.helpers.runs import dataset_rows, run_small, small_config

LONG, SHORT = (
    {"type": "verifier", "name": name, "function": f"tests.helpers.scores:{function}"}
    for name, function in (("long", "length"), ("short", "brevity"))
)
CONFIG = small_config(
    block_size=4, label={"labelers": [LONG]}, filter={"filters": [{"type": "identical"}]}
)
WHOLE = "part-00000-00003.parquet"
APART = [f"part-{index:05d}.parquet" for index in range(4)]


@pytest.fixture(autouse=True)
def no_reports(monkeypatch: pytest.MonkeyPatch) -> None:
    """They take longer than all the rest."""
    for module in ("redecide", "loop", "relabel.relabel"):
        monkeypatch.setattr(f"prefloop.pipeline.{module}.write_report", lambda run: None)


@pytest.fixture(scope="module")
def sampled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of four blocks, each in files of its own."""
    return run_small(tmp_path_factory.mktemp("sampled") / "run", CONFIG).root


@pytest.fixture
def apart(sampled: Path, tmp_path: Path) -> RunDir:
    return RunDir(Path(shutil.copytree(sampled, tmp_path / "apart")))


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two blocks are many."""
    monkeypatch.setattr(spans, "_MANY", 2)


@pytest.fixture
def together(apart: RunDir, tmp_path: Path, few: None) -> RunDir:
    """The same, its candidates and votes in one file each."""
    run = RunDir(Path(shutil.copytree(apart.root, tmp_path / "run")))
    put_both(run)
    return run


def put_both(run: RunDir) -> None:
    folder = run.round(0)
    put_together(folder, folder.candidates)
    put_together(folder, folder.votes)


def names(run: RunDir, noun: str) -> list[str]:
    return sorted(path.name for path in (run.root / "round-000" / noun).glob("part-*"))


def again(run: RunDir) -> Relabelled:
    return asyncio.run(relabel(run, Asked({"labelers": [SHORT]})))


@pytest.mark.usefixtures("few")
def test_the_same_rows_in_fewer_files(apart: RunDir, tmp_path: Path) -> None:
    run = run_small(tmp_path / "run", CONFIG)
    for noun in ("candidate", "vote", "decision", "triple"):
        assert names(run, noun) == [WHOLE]
    assert names(apart, "candidate") == names(apart, "vote") == APART
    assert dataset_rows(run) == dataset_rows(apart)
    for mine, theirs in zip(run.rounds(), apart.rounds(), strict=True):
        assert mine.candidates.table().equals(theirs.candidates.table())
        assert mine.votes.table().equals(theirs.votes.table())
        assert mine.candidates.counts() == theirs.candidates.counts()
        assert mine.votes.counts() == theirs.votes.counts()


def test_what_is_lost_is_made_again(together: RunDir, apart: RunDir) -> None:
    rows = dataset_rows(together)
    (together.root / "round-000" / "candidate" / WHOLE).unlink()
    run_small(together.root, CONFIG)
    assert names(together, "candidate") == [WHOLE]
    assert together.round(0).candidates.table().equals(apart.round(0).candidates.table())
    (together.root / "round-000" / "vote" / WHOLE).unlink()
    run_small(together.root, CONFIG)
    assert names(together, "vote") == [WHOLE]
    assert together.round(0).votes.table().equals(apart.round(0).votes.table())
    assert dataset_rows(together) == rows


def test_a_kill_between_the_two_files_is_made_up_for(together: RunDir, apart: RunDir) -> None:
    folder = together.root / "round-000" / "candidate"
    for name in APART[1:]:
        shutil.copy(apart.root / "round-000" / "candidate" / name, folder)
    candidates = apart.round(0).candidates
    assert together.round(0).candidates.indices() == [0, 1, 2, 3]
    assert together.round(0).candidates.counts() == candidates.counts()
    assert together.round(0).candidates.table().equals(candidates.table())
    put_both(together)
    assert names(together, "candidate") == [WHOLE]


@pytest.mark.usefixtures("few")
def test_who_comes_late_writes_nothing(apart: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    late, folder = apart.round(0).candidates, apart.round(0)
    assert late.indices() == [0, 1, 2, 3]
    others = folder.candidates.read(2).slice(0, 1)
    put_both(apart)
    assert late.exists(2)
    assert not late.write(2, others)
    assert names(apart, "candidate") == [WHOLE]
    # One that was paused after it had looked, and before it wrote.
    paused = apart.round(0).candidates
    looked = iter([None])
    shared_by = paused._shared_by
    monkeypatch.setattr(paused, "_shared_by", lambda index: next(looked, shared_by(index)))
    assert not paused.write(2, others)
    assert names(apart, "candidate") == [WHOLE]
    assert len(apart.round(0).candidates.read(2)) == len(folder.candidates.read(2)) > 1


def test_labelled_again_before_and_after(apart: RunDir, together: RunDir, few: None) -> None:
    first = again(apart)
    assert first.votes["short"].asked
    put_both(apart)
    once_more = again(apart)
    assert once_more.folder == first.folder
    assert not once_more.votes["short"].asked
    assert once_more.votes["short"].there == first.votes["short"].asked
    assert names(RunDir(first.folder), "candidate") == [WHOLE]
    other = again(together)
    assert dataset_rows(RunDir(other.folder)) == dataset_rows(RunDir(first.folder))


def test_votes_on_answers_that_are_others_now_are_forgotten(together: RunDir) -> None:
    first = again(together)
    pairs = first.votes["short"].asked
    folder = together.round(0)
    others = folder.candidates.read(1)
    texts = [f"{text} Another." for text in others["text"].to_pylist()]
    changed = others.set_column(others.column_names.index("text"), "text", [texts])
    folder.candidates.replace(1, changed.cast(folder.candidates.schema))
    assert names(together, "candidate") == APART
    once_more = again(together)
    assert 0 < once_more.votes["short"].asked < pairs
    assert once_more.votes["short"].asked + once_more.votes["short"].there == pairs
    ours = RunDir(first.folder).round(0).candidates
    assert ours.table().equals(together.round(0).candidates.table())
