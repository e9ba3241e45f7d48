"""The local copy that a run on a store is worked on in, and the door to it."""

import json
import shutil
from pathlib import Path

import pytest

from prefloop.data.config import PromptSource
from prefloop.data.errors import InputError
from prefloop.data.shards import atomic_write_text
from prefloop.data.sources.files import read_rows
from prefloop.data.storage.lease import FOLDER, LeaseLost, LeaseTaken
from prefloop.data.storage.objects import Objects
from prefloop.pipeline.config import ConfigError
from prefloop.pipeline.remote.door import local_path, shown_path, worked_on
from prefloop.pipeline.remote.working_copy import WorkingCopy, copy_of
from prefloop.pipeline.run.models import checkpoint
from prefloop.pipeline.run.run_dir import RunDir
from tests.helpers.runs import small_config


def write(root: Path, **files: str) -> None:
    for name, text in files.items():
        atomic_write_text(root / name.replace("__", "/"), text)


@pytest.fixture
def address(bucket: str) -> str:
    """Of a run that has a config and a manifest."""
    with worked_on(f"{bucket}/team/run") as root:
        write(root, **{"config.yaml": "seed: 1\n", "manifest.json": "{}", "round-000__a.json": "1"})
    return f"{bucket}/team/run"


def elsewhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / name))


def test_what_is_committed_is_on_the_store_before_the_commit_returns(address: str) -> None:
    with worked_on(address) as root:
        write(root, votes__b="2")
        assert Objects(address).get("votes/b") == b"2"
        shutil.rmtree(root / "votes")
        write(root, c="3")
        assert Objects(address).find("votes/b") is None


def test_what_no_commit_told_of_is_there_at_the_end(address: str) -> None:
    """Also where that is an error's."""

    def fail() -> None:
        with worked_on(address) as root:
            RunDir(root).note("sample", 0, 1.0)
            (root / "policy").mkdir()
            (root / "policy" / "model").write_text("weights")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert Objects(address).get("policy/model") == b"weights"
    assert json.loads(Objects(address).get("journal/000001.jsonl"))["stage"] == "sample"
    with worked_on(address):  # nobody has to wait
        pass


def test_a_lock_on_the_copy_is_one_on_the_store(
    address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = RunDir(local_path(address))
    with run.lock(), RunDir(run.root / "relabels" / "one").lock(), worked_on(address):
        write(run.root, a="1")
        assert Objects(address).find("a")
        elsewhere(monkeypatch, tmp_path, "two")
        with pytest.raises(LeaseTaken, match="is in use by process"), worked_on(address):
            pass
    with worked_on(address) as root:
        assert (root / "a").read_text() == "1"


def test_who_reads_while_somebody_works_here_changes_nothing(address: str) -> None:
    with worked_on(address) as root:
        (root / "half").write_text("not committed")
        assert WorkingCopy(address).look() == root
        assert (root / "half").exists()


def test_a_copy_that_was_left_by_a_kill_goes_on(address: str, tmp_path: Path) -> None:
    """Nothing that is here is fetched or lost, as nobody worked there since."""
    with worked_on(address) as root:
        saved = tmp_path / "saved"
        RunDir(root).note("label", 0, 1.0)
        write(root, b="2")
        shutil.copytree(root.parent, saved)
        objects = Objects(address)
        claims = [one.name for one in objects.walk(FOLDER)]
    for one in objects.walk(FOLDER):  # as a kill leaves it
        if one.name not in claims:
            objects.delete(one.name)
    claim = f"{FOLDER}/{max(name[5:13] for name in claims)}.json"
    objects.put(
        claim, json.dumps({**json.loads(objects.get(claim)), "process": 2**22 + 1}).encode()
    )
    shutil.rmtree(root.parent)
    shutil.copytree(saved, root.parent)
    objects.delete_all([one.name for one in objects.walk("journal")])
    assert local_path(address) == root
    assert RunDir(root).notes()
    with worked_on(address):
        assert [note["stage"] for note in RunDir(root).notes()] == ["label"]
    assert objects.find("journal/000001.jsonl")


def test_who_was_taken_over_from_writes_nothing_more(address: str) -> None:
    objects = Objects(address)

    def wake_late() -> None:
        with worked_on(address) as root:
            number = max(int(one.name[5:13]) for one in objects.walk(FOLDER) if ".json" in one.name)
            objects.create(f"{FOLDER}/{number + 1:08d}.json", b'{"nonce": "other"}')
            half_a_minute_passes(root)
            write(root, late="1")

    with pytest.raises(LeaseLost, match="another process took over"):
        wake_late()
    assert objects.find("late") is None


def half_a_minute_passes(root: Path) -> None:
    """Without a sign of life of who works in ``root``."""
    from prefloop.data.storage import commits

    keeper = commits._LISTENERS[-1].__self__  # type: ignore[attr-defined]
    keeper._lease._beaten = 0.0
    assert keeper._root == root


def test_addresses_within_a_run_lead_into_its_copy(
    address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere(monkeypatch, tmp_path, "two")
    inner = local_path(f"{address}/round-000")
    assert inner == local_path(address) / "round-000"
    assert [path.name for path in inner.iterdir()] == ["a.json"]
    assert shown_path(inner) == f"{address}/round-000"
    assert shown_path(tmp_path / "a") == str(tmp_path / "a")
    assert copy_of(inner).address == address
    assert copy_of(tmp_path) is None


def test_a_path_into_the_copy_is_up_to_date_too(
    address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = local_path(address)
    elsewhere(monkeypatch, tmp_path, "two")
    with worked_on(address) as root:
        write(root, new="1")
    elsewhere(monkeypatch, tmp_path, "cache")
    assert not (here / "new").exists()
    assert local_path(here) == here
    assert (here / "new").exists()


def test_a_model_may_be_one_of_a_run_there(
    bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with worked_on(f"{bucket}/run") as root:
        write(root, **{"config.yaml": "seed: 1\n", "manifest.json": "{}"})
        write(root, **{"round-000__policy__model.safetensors": "weights"})
    elsewhere(monkeypatch, tmp_path, "two")
    found = Path(checkpoint(f"{bucket}/run/round-000/policy", served=False))
    assert (found / "model.safetensors").read_text() == "weights"
    assert checkpoint("s3://a/name", served=True) == "s3://a/name"  # a server may call it so


def test_rows_are_not_read_from_a_store() -> None:
    source = PromptSource.model_validate({"path": "s3://bucket/prompts.jsonl"})
    with pytest.raises(InputError, match="files of this machine: copy it here"):
        list(read_rows(source))


def test_an_address_is_brought_into_one_form() -> None:
    assert small_config(run_dir="s3:/bucket//run/").run_dir == "s3://bucket/run"
    with pytest.raises(ConfigError, match="write it as s3://BUCKET/FOLDER"):
        small_config(run_dir="s3://bucket/run?a=1")
