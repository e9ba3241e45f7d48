"""Pages of a run that are written again only where they would say something else."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from prefloop.pipeline.report.run_page import write_report
from prefloop.pipeline.run.fresh import report_is_fresh
from prefloop.pipeline.run.run_dir import RunDir
from tests.helpers.synthetic_run import write_run


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    """A run with a report, everything in it a minute older than that."""
    found = write_run(tmp_path / "run", rounds=1, blocks=2)
    write_report(found)
    then = found.report.stat().st_mtime - 60
    for path in found.root.rglob("*"):
        if path != found.report:
            os.utime(path, (then, then))
    assert report_is_fresh(found)
    return found


def test_without_a_report_there_is_nothing_fresh(run: RunDir) -> None:
    run.report.unlink()
    assert not report_is_fresh(run)


@pytest.mark.parametrize(
    "name", ["config.yaml", "journal.jsonl", "round-000/decision/part-00001.parquet"]
)
def test_a_file_that_changed_is_noticed(run: RunDir, name: str) -> None:
    now = run.report.stat().st_mtime + 1
    os.utime(run.root / name, (now, now))
    assert not report_is_fresh(run)


def test_a_file_that_came_or_went_is_noticed(run: RunDir) -> None:
    (run.round(0).votes.path(1)).unlink()
    now = run.report.stat().st_mtime + 1
    os.utime(run.round(0).votes.folder, (now, now))
    assert not report_is_fresh(run)


def test_kept_answers_of_servers_and_the_lock_say_nothing(run: RunDir) -> None:
    run.cache.mkdir()
    (run.cache / "responses.sqlite").write_text("")
    (run.root / ".lock-owner").write_text("")
    now = run.report.stat().st_mtime + 1
    for path in (run.cache, run.cache / "responses.sqlite", run.root / ".lock-owner"):
        os.utime(path, (now, now))
    assert report_is_fresh(run)


def test_a_report_of_a_clock_that_was_put_back_since_is_made_again(run: RunDir) -> None:
    later = time.time() + 3600
    os.utime(run.report, (later, later))
    assert not report_is_fresh(run)
