"""Who creates a file first keeps it; and what killed writers leave is told from what lives."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import pytest

from prefloop.data.errors import StorageError
from prefloop.data.storage import whole_files
from prefloop.data.storage.whole_files import LocalFiles, create_file, link_file, remove_leftovers
from tests.helpers.paths import ROOT

WRITER = """
import sys
from pathlib import Path
from prefloop.data.storage.whole_files import LocalFiles

sys.stdin.readline()  # until all are ready
print(LocalFiles(Path(sys.argv[1])).create("part", sys.argv[2].encode() * 100_000))
"""
SLEEPER = """
import os, signal, sys
from pathlib import Path
from prefloop.data.storage.whole_files import create_file

def write(temporary):
    temporary.write_text("late")
    os.kill(os.getpid(), signal.SIGSTOP)

print(create_file(Path(sys.argv[1]), write))
"""


@pytest.fixture(params=["links", "no links"])
def links(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file system with hard links, and one without."""
    if request.param == "no links":
        monkeypatch.setattr(whole_files.os, "link", _refuse)


def _names(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir()]


def _refuse(*names: object) -> None:
    raise OSError(errno.EPERM, "Operation not permitted")


@pytest.mark.usefixtures("links")
def test_the_first_stays_until_it_is_replaced(tmp_path: Path) -> None:
    storage = LocalFiles(tmp_path / "deep")
    assert storage.list() == []
    assert storage.create("a/b", b"first")
    assert not storage.create("a/b", b"second")
    assert storage.get("a/b") == b"first"
    [before] = storage.list("a")
    assert (before.name, before.size) == ("b", 5)
    storage.put("a/b", b"other")
    [after] = storage.list("a")
    assert storage.get("a/b") == b"other"
    assert before.version != after.version
    storage.delete("a/b")
    storage.delete("a/b")
    assert storage.list("a") == []
    with pytest.raises(FileNotFoundError):
        storage.get("a/b")


def test_a_listing_has_files_alone_by_their_names(tmp_path: Path) -> None:
    for name in ("b", "a", ".hidden", "folder/within"):
        LocalFiles(tmp_path).put(name, b"")
    assert [file.name for file in LocalFiles(tmp_path).list()] == ["a", "b"]


def test_what_the_storage_refuses_is_one_line(tmp_path: Path) -> None:
    storage = LocalFiles(tmp_path)
    storage.put("file", b"")
    (tmp_path / "folder").mkdir()
    for refused in (
        lambda: storage.put("file/within", b""),
        lambda: storage.list("file"),
        lambda: storage.get("folder"),
        lambda: storage.delete("folder"),
    ):
        with pytest.raises(StorageError, match="cannot be") as caught:
            refused()
        assert "\n" not in str(caught.value)
        assert str(tmp_path) in str(caught.value)


@pytest.mark.usefixtures("links")
def test_of_many_threads_one_is_first(tmp_path: Path) -> None:
    writers = 8
    for turn in range(10):
        ready = Barrier(writers)
        path = tmp_path / str(turn)

        def create(writer: int, path: Path = path, ready: Barrier = ready) -> bool:
            def write(temporary: Path) -> None:
                temporary.write_text(str(writer))
                ready.wait()

            return create_file(path, write)

        with ThreadPoolExecutor(writers) as pool:
            first = list(pool.map(create, range(writers)))
        assert [path.read_text()] == [str(writer) for writer in range(writers) if first[writer]]
    assert len([path for path in tmp_path.iterdir() if path.name != ".create.lock"]) == 10


def test_of_two_processes_one_is_first(tmp_path: Path) -> None:
    writers = [
        subprocess.Popen(
            [sys.executable, "-c", WRITER, str(tmp_path), name],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT,
        )
        for name in "xy"
    ]  # fmt: skip
    for writer in writers:
        assert writer.stdin
        writer.stdin.write("\n")
        writer.stdin.flush()
    said = [writer.communicate()[0].strip() for writer in writers]
    assert sorted(said) == ["False", "True"]
    assert (tmp_path / "part").read_text() == "xy"[said.index("True")] * 100_000
    assert _names(tmp_path) == ["part"]


def test_a_paused_process_that_wakes_is_not_first(tmp_path: Path) -> None:
    path = tmp_path / "part"
    sleeper = subprocess.Popen(
        [sys.executable, "-c", SLEEPER, str(path)], stdout=subprocess.PIPE, text=True, cwd=ROOT
    )
    os.waitpid(sleeper.pid, os.WUNTRACED)
    remove_leftovers(tmp_path)
    assert len(_names(tmp_path)) == 1  # it lives
    assert LocalFiles(tmp_path).create("part", b"in time")
    os.kill(sleeper.pid, signal.SIGCONT)
    assert sleeper.communicate()[0] == "False\n"
    assert path.read_text() == "in time"
    assert _names(tmp_path) == ["part"]


def test_a_link_whose_answer_was_lost_is_ones_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    link = os.link

    def twice(source: Path, target: Path) -> None:
        link(source, target)
        link(source, target)

    monkeypatch.setattr(whole_files.os, "link", twice)
    assert LocalFiles(tmp_path).create("part", b"mine")
    assert _names(tmp_path) == ["part"]


@pytest.mark.usefixtures("links")
def test_a_file_gets_another_name_once(tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "deep" / "target"
    source.write_text("one")
    link_file(source, target)
    other = tmp_path / "other"
    other.write_text("two")
    link_file(other, target)
    assert target.read_text() == "one"
    with pytest.raises(StorageError, match="target-2: cannot be written: No such file"):
        link_file(tmp_path / "nothing", tmp_path / "target-2")


def test_what_the_living_and_other_hosts_write_is_no_leftover(tmp_path: Path) -> None:
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    now, name = time.time(), ".part-00000.parquet.tmp"
    spared = {
        f"{name}-{os.getpid()}": now,  # of an earlier version
        f"{name}-{whole_files._HOST}-{os.getpid()}-0123abcd": now - 1e6,
        f"{name}-another-host.example-{dead.pid}-0123abcd": now - 3600,
        "notes.txt": now - 1e6,
        f"visible.tmp-{dead.pid}": now - 1e6,
    }
    removed = {
        f"{name}-{dead.pid}": now,
        f"deep/{name}-{whole_files._HOST}-{dead.pid}-0123abcd": now,
        f"{name}-another-host.example-{os.getpid()}-0123abcd": now - 90_000,
    }
    (tmp_path / "deep").mkdir()
    for file, written in (spared | removed).items():
        (tmp_path / file).touch()
        os.utime(tmp_path / file, (written, written))
    remove_leftovers(tmp_path)
    assert {path.name for path in tmp_path.rglob("*")} == {*spared, "deep"}
