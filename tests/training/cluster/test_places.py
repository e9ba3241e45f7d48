"""No two processes at one place of a training, and none who waits for one that is gone."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from prefloop.training.cluster.places import Node, clear_places, place_of
from prefloop.training.errors import TrainingError
from tests.helpers.paths import ROOT

AT_WORK = """
import sys
from pathlib import Path
from prefloop.training.cluster.places import Node, place_of
with place_of(0, Path(sys.argv[1]), Node("there", bool)):
    print("at work", flush=True)
    sys.stdin.read()
"""
HERE = Node("here", lambda name: name in ("here", "there"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "places"
    made.mkdir()
    return made


@pytest.fixture
def other(folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A process that has place 0."""
    with subprocess.Popen(
        [sys.executable, "-c", AT_WORK, str(folder)], cwd=ROOT,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    ) as process:  # fmt: skip
        assert process.stdout
        assert process.stdout.readline() == b"at work\n"
        yield process


def test_who_takes_a_place_waits_for_who_has_it_and_not_for_a_dead_process(
    folder: Path, other: subprocess.Popen[bytes]
) -> None:
    told = pytest.raises(TrainingError, match=f"process 0 .*, PID {other.pid}.: end it")
    with place_of(1, folder, HERE), told, place_of(0, folder, HERE, wait_s=0):
        pass
    clear_places(folder, wait_s=0)
    assert folder.is_dir()
    other.send_signal(signal.SIGKILL)
    other.wait()
    with pytest.raises(ValueError, match="work"), place_of(0, folder, HERE, wait_s=0):
        raise ValueError("work")
    with place_of(0, folder, HERE, wait_s=0):
        assert (folder / "0.process").read_text(encoding="utf-8").endswith(f"PID {os.getpid()}")
    clear_places(folder, wait_s=0)
    assert not folder.exists()


def test_a_lock_does_not_count_whose_machine_has_left_the_cluster(
    folder: Path, other: subprocess.Popen[bytes]
) -> None:
    alone = Node("here", lambda name: name == "here")
    with place_of(0, folder, alone, wait_s=0):
        assert (folder / "0.process").read_text(encoding="utf-8").startswith("here ")
    assert other.poll() is None
