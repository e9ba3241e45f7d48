"""The run directory: one writer, a journal that survives kills, clear refusals."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from prefloop.pipeline.run.run_dir import RunDir, RunError

HOLD = """
import sys, time
from pathlib import Path
from prefloop.pipeline.run.run_dir import RunDir
with RunDir(Path(sys.argv[1])).lock():
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_second_process_is_refused_and_a_killed_one_leaves_no_lock(tmp_path: Path) -> None:
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        message = f"in use by process {holder.pid}"
        with pytest.raises(RunError, match=message), RunDir(tmp_path).lock():
            pass
    finally:
        holder.kill()
        holder.wait()
    with RunDir(tmp_path).lock():
        pass


def test_a_torn_journal_line_swallows_no_other(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    run.note("sample", 0, 1.5, block=0)
    with run.journal.open("a") as handle:
        handle.write('{"stage": "sam')  # a process killed while writing
    run.note("label", 0, 0.25)
    assert [note["stage"] for note in run.notes()] == ["sample", "label"]
    assert json.loads(run.journal.read_text().splitlines()[0])["block"] == 0


def test_a_folder_that_is_no_run_is_refused_with_its_name(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=str(tmp_path)):
        RunDir(tmp_path).require()


def test_a_folder_beside_a_run_is_told_where_the_run_is(tmp_path: Path) -> None:
    run = tmp_path / "mine" / "run"
    (run / "dataset").mkdir(parents=True)
    for name in ("config.yaml", "manifest.json"):
        (run / name).write_text("{}\n")
    other = tmp_path / "mine" / "another"
    other.mkdir()
    (other / "config.yaml").write_text("a: config of something else\n")
    with pytest.raises(RunError, match=rf"no config\.yaml \(did you mean {run}\?\)$"):
        RunDir(tmp_path / "mine").require()
    with pytest.raises(RunError, match=rf"is in the run directory {run}: give that one\)$"):
        RunDir(run / "dataset").require()
    with pytest.raises(RunError, match="there is no such folder"):
        RunDir(tmp_path / "nowhere").require()
