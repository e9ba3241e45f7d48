"""A folder and what is below an address: the same in either direction, at once or not at all."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import obstore
import pytest

from prefloop.data.errors import StorageError
from prefloop.data.storage.lease import Lease
from prefloop.data.storage.objects import ChangedMeanwhile, Objects
from prefloop.data.storage.whole_files import put_file
from prefloop.pipeline.remote import changes
from prefloop.pipeline.remote.changes import StoreChanges
from prefloop.pipeline.remote.known_objects import KnownObjects
from prefloop.pipeline.remote.mirror import Mirror


class Killed(BaseException):
    """In place of a kill."""


@contextmanager
def killed_at(number: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Die at the change ``number`` of the store from here on, before it is made."""
    left = [number]
    with monkeypatch.context() as patched:
        for name in ("put", "delete"):
            real = getattr(obstore, name)

            def operate(*args: Any, _real: Any = real, **options: Any) -> Any:
                left[0] -= 1
                if left[0] < 0:
                    raise Killed
                return _real(*args, **options)

            patched.setattr(obstore, name, operate)
        yield


class Machine:
    """A machine with its copy of what is at an address."""

    def __init__(self, address: str, folder: Path) -> None:
        self.root = folder / "run"
        self.root.mkdir(parents=True)
        self.objects = Objects(address)
        self.mirror = Mirror(self.objects, self.root, KnownObjects(folder / "known.sqlite"))
        self.lease = Lease(self.objects)

    def put(self, **files: str) -> None:
        for name, text in files.items():
            put_file(self.root / name.replace("__", "/"), text.encode())

    def send(self) -> None:
        self.mirror.send(self.lease, slow=True)

    def files(self) -> dict[str, bytes]:
        return _files(self.root)


def _files(root: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(root)): path.read_bytes() if path.is_file() else b"folder"
        for path in sorted(root.rglob("*"))
        if not path.name.startswith(".")
    }


@pytest.fixture
def first(any_bucket: str, tmp_path: Path) -> Machine:
    machine = Machine(f"{any_bucket}/run", tmp_path / "first")
    machine.lease.take()
    return machine


@pytest.fixture
def second(any_bucket: str, tmp_path: Path) -> Machine:
    return Machine(f"{any_bucket}/run", tmp_path / "second")


def test_what_is_done_to_a_folder_is_done_on_the_store(first: Machine, second: Machine) -> None:
    first.put(config="1", prompt__a="a", prompt__b="b", deep__er__c="c")
    (first.root / "empty" / "one").mkdir(parents=True)
    (first.root / ".hidden").write_text("no")
    (first.root / "cache" / "engine").mkdir(parents=True)
    (first.root / "cache" / "engine" / "responses.sqlite").write_text("no")
    first.send()
    second.mirror.fetch()
    there = second.files()
    assert there.pop("prompt/a") == b"a"
    assert there["empty/one"] == b"folder"
    assert not any("cache" in name or "hidden" in name for name in there)

    (first.root / "prompt" / "a").unlink()
    shutil.rmtree(first.root / "deep")
    (first.root / "empty").rename(first.root / "renamed")
    first.put(config="2", prompt__c="c")
    first.send()
    second.mirror.fetch()
    shutil.rmtree(first.root / "cache")
    assert second.files() == first.files()


def test_what_is_not_on_the_store_goes(first: Machine, second: Machine) -> None:
    first.put(config="1")
    first.send()
    second.put(config="mine", other__file="x")
    second.mirror.fetch()
    assert second.files() == {"config": b"1"}


def test_a_fetch_takes_only_what_changed(
    first: Machine, second: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    first.put(a="1", b="2", c="3")
    first.send()
    second.mirror.fetch()
    first.put(b="4")
    first.send()
    second.put(c="changed here")
    fetched: list[str] = []
    real = Objects.download

    def download(self: Objects, name: str, path: Path) -> str:
        fetched.append(name)
        return real(self, name, path)

    monkeypatch.setattr(Objects, "download", download)
    second.mirror.fetch()
    assert sorted(fetched) == ["b", "c"]
    assert second.files() == first.files()


def test_a_commit_of_one_file_is_one_request(
    first: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    first.put(a="1")
    first.send()
    asked: list[str] = []
    for name in ("put", "delete", "get", "head", "list"):
        real = getattr(obstore, name)

        def ask(*args: Any, _name: str = name, _real: Any = real, **options: Any) -> Any:
            asked.append(_name)
            return _real(*args, **options)

        monkeypatch.setattr(obstore, name, ask)
    first.put(b="2")
    first.mirror.send(first.lease)
    first.mirror.send(first.lease)
    assert asked == ["put"]


def test_a_change_that_dies_in_the_middle_is_undone_or_done(
    first: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At every request: who takes the run up, and who reads before, find the old or the new."""
    address = first.objects.address

    def begin(number: int) -> Machine:
        machine = Machine(f"{address}-{number}", tmp_path / f"one-{number}")
        machine.put(config="1", written="yes", votes__a="a", votes__b="b")
        machine.send()
        return machine

    seen = set()
    for number in range(40):
        machine = begin(number)
        before = machine.files()
        (machine.root / "written").unlink()
        (machine.root / "votes").rename(machine.root / "kept")
        machine.put(config="2", triples__a="t")
        after = machine.files()
        done = False
        with suppress(Killed), killed_at(number, monkeypatch):
            machine.send()
            done = True
        reader = Machine(machine.objects.address, tmp_path / f"reader-{number}")
        reader.mirror.fetch()
        assert reader.files() in (before, after)
        changes.recover(machine.objects)
        owner = Machine(machine.objects.address, tmp_path / f"owner-{number}")
        owner.mirror.fetch()
        assert owner.files() == reader.files()
        assert not [one.name for one in machine.objects.walk("lock")]
        reader.put(more="x")  # what a reader remembers is right
        owner.put(more="x")
        reader.mirror.compare()
        reader.send()
        seen.add("after" if owner.files() | {"more": b""} == after | {"more": b""} else "before")
        if done:
            break
    assert done
    assert number > 8
    assert seen == {"before", "after"}


def test_a_machine_that_goes_on_after_a_failure_finishes(
    first: Machine, second: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    first.put(a="1", b="2")
    for number in range(4):
        with suppress(Killed), killed_at(number, monkeypatch):
            first.send()
    first.send()
    second.mirror.fetch()
    assert second.files() == {"a": b"1", "b": b"2"}


def test_what_another_wrote_is_not_replaced(first: Machine) -> None:
    first.put(a="1")
    first.send()
    first.objects.put("a", b"other")
    first.objects.put("b", b"other")
    first.put(a="2")
    with pytest.raises(ChangedMeanwhile, match="changed by somebody else"):
        first.send()
    first.mirror = Mirror(first.objects, first.root, KnownObjects(first.root.parent / "new"))
    with pytest.raises(StorageError, match="is there already, with other content"):
        changes.apply(first.objects, StoreChanges(created={"b": b"mine"}))
    assert first.objects.get("a") == first.objects.get("b") == b"other"


def test_a_copy_that_is_ahead_is_carried_over(first: Machine, second: Machine) -> None:
    """What was done before a kill, and what was on its way."""
    first.put(a="1", b="2")
    first.send()
    first.put(a="3", c="4")
    (first.root / "b").unlink()
    first.objects.put("c", b"4")  # was sent, and never noted
    again = Mirror(first.objects, first.root, KnownObjects(first.root.parent / "known.sqlite"))
    again.compare()
    again.send(first.lease, slow=True)
    second.mirror.fetch()
    assert second.files() == {"a": b"3", "c": b"4"}


def test_logs_go_in_pieces_of_whole_lines(first: Machine, second: Machine) -> None:
    journal = first.root / "journal.jsonl"
    journal.write_text('{"a": 1}\n{"b"')
    spent = first.root / "cache" / "judge.spent.jsonl"
    spent.parent.mkdir()
    spent.write_text("{}\n")
    first.put(config="1")
    first.send()
    second.mirror.fetch()
    assert second.files()["journal.jsonl"] == b'{"a": 1}\n'
    assert second.files()["cache/judge.spent.jsonl"] == b"{}\n"
    with journal.open("a") as file:
        file.write(": 2}\n")
    first.send()
    first.send()
    assert [one.name for one in first.objects.list("journal")] == ["000001.jsonl", "000002.jsonl"]
    second.mirror.fetch()
    assert second.files()["journal.jsonl"] == journal.read_bytes()


def test_a_shard_made_anew_is_sent_though_it_has_the_inode_of_the_old_one(
    first: Machine, second: Machine
) -> None:
    path = first.root / "decision" / "part-00000.parquet"
    put_file(path, b"old")
    first.send()
    with path.open("wb") as file:  # the same inode, as after a removal
        file.write(b"new")
    put_file(path.with_name("part-00001.parquet"), b"more")
    first.mirror.written(path)
    first.mirror.send(first.lease)
    second.mirror.fetch()
    assert second.files() == first.files()


def test_who_reads_does_without_the_weights(first: Machine, second: Machine) -> None:
    first.put(**{"policy__model.safetensors": "large", "policy__config.json": "{}"})
    first.send()
    second.mirror.fetch(weights=False)
    assert [*second.files()] == ["policy", "policy/config.json"]
    second.mirror.fetch()
    assert second.files() == first.files()
    second.mirror.fetch(weights=False)  # what is here already is not thrown away
    assert second.files() == first.files()
    first.put(**{"policy__model.safetensors": "others"})
    first.send()
    second.mirror.fetch(weights=False)  # unless it is old
    assert [*second.files()] == ["policy", "policy/config.json"]


def test_a_checkpoint_is_carried_when_it_is_whole(first: Machine, second: Machine) -> None:
    folder = first.root / "round-000" / ".policy.checkpoints" / "checkpoint-5"
    put_file(folder / "state", b"half")
    first.send()
    second.mirror.fetch()
    assert not (second.root / folder.relative_to(first.root)).exists()
    put_file(folder / "prefloop_complete", b"of this")
    first.send()
    second.mirror.fetch()
    assert _files(second.root / folder.relative_to(first.root)) == _files(folder)
