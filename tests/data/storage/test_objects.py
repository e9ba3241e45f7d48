"""Objects of a store as files: created once, replaced by who knows them, nothing told."""

import pickle
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from prefloop.data.errors import InputError, StorageError
from prefloop.data.storage.objects import ChangedMeanwhile, Objects, as_address, is_address
from tests.helpers.paths import ROOT
from tests.helpers.stores.object_store import SECRET, environment, refusing_server


def test_of_many_who_create_one_object_one_is_told_so(any_bucket: str) -> None:
    objects = Objects(f"{any_bucket}/run")
    with ThreadPoolExecutor(8) as pool:
        told = list(pool.map(lambda n: objects.create("part", str(n).encode()), range(8)))
    assert sum(told) == 1
    assert objects.get("part") == str(told.index(True)).encode()


def test_who_creates_again_what_it_wrote_is_told_that_it_is_there(any_bucket: str) -> None:
    """The answer to the first request may have been lost."""
    objects = Objects(f"{any_bucket}/run")
    assert objects.create("part", b"one")
    assert objects.create("part", b"one")
    assert not objects.create("part", b"two")


def test_an_object_is_replaced_by_who_saw_its_last_version(any_bucket: str) -> None:
    objects = Objects(f"{any_bucket}/run")
    first = objects.create_version("config", b"1")
    assert first
    second = objects.replace("config", b"2", first)
    with pytest.raises(ChangedMeanwhile, match="config was changed by somebody else"):
        objects.replace("config", b"3", first)
    assert objects.replace("config", b"2", first) == second  # its own, the answer of which was lost
    assert objects.get("config") == b"2"


def test_a_version_is_the_same_whoever_asks_for_it(any_bucket: str, tmp_path: Path) -> None:
    objects = Objects(f"{any_bucket}/run")
    made = objects.create_version("a", b"1")
    found = objects.find("a")
    assert made
    assert found
    told = {
        made,
        found.version,
        objects.download("a", tmp_path / "a"),
        *(one.version for one in objects.list()),
        *(one.version for one in objects.walk()),
    }
    assert told == {made}
    assert objects.replace("a", b"2", found.version) != made


def test_folders_are_listed_and_files_removed(any_bucket: str) -> None:
    objects = Objects(f"{any_bucket}/run")
    for name in ("a", "b/c", "b/d", "b/e/f", "b/.hidden"):
        objects.put(name, b"xy")
    assert [(one.name, one.size) for one in objects.list()] == [("a", 2)]
    assert [one.name for one in objects.list("b")] == ["c", "d"]
    assert objects.list("nothing") == []
    objects.delete("a")
    objects.delete("a")
    assert sorted(one.name for one in objects.walk()) == ["b/.hidden", "b/c", "b/d", "b/e/f"]
    with pytest.raises(FileNotFoundError):
        objects.get("a")


def test_files_are_sent_and_fetched(
    bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    objects = Objects(f"{bucket}/run")
    for large in (1 << 30, 8 << 20):  # in one request, and in parts
        monkeypatch.setattr("prefloop.data.storage.objects.LARGE", large)
        (tmp_path / "file").write_bytes(bytes(range(256)) * (40 << 10))
        assert objects.upload(f"w{large}", tmp_path / "file")
        objects.download(f"w{large}", tmp_path / "back")
        assert (tmp_path / "back").read_bytes() == (tmp_path / "file").read_bytes()
        (tmp_path / "file").write_bytes(b"other")
        assert objects.upload(f"w{large}", tmp_path / "file") is None


def test_no_key_is_shown_or_pickled(bucket: str) -> None:
    objects = Objects(f"{bucket}/run")
    objects.put("a", b"x")
    assert SECRET.encode() not in pickle.dumps(objects)
    assert SECRET not in repr(objects)
    assert pickle.loads(pickle.dumps(objects)).get("a") == b"x"


def test_a_store_that_honours_conditions_is_taken(any_bucket: str) -> None:
    objects = Objects(f"{any_bucket}/run")
    assert objects.require_conditions("lock").year > 2000
    assert list(objects.walk()) == []


def test_a_store_that_ignores_conditions_is_refused(
    bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import obstore

    real = obstore.put
    monkeypatch.setattr(obstore, "put", lambda *args, mode=None, **more: real(*args, **more))
    with pytest.raises(StorageError, match="ignores If-None-Match"):
        Objects(f"{bucket}/run").require_conditions("lock")


def test_a_bucket_that_is_not_there_is_named(bucket: str) -> None:
    objects = Objects("s3://nowhere-at-all/run")
    for ask in (lambda: list(objects.walk()), lambda: objects.get("a"),
                lambda: objects.create("a", b"x")):  # fmt: skip
        with pytest.raises(StorageError, match="no such bucket: make it") as error:
            ask()
        assert "\n" not in str(error.value)


def test_what_the_store_refuses_is_one_line_without_keys(
    bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with refusing_server(403, "AccessDenied") as url:
        for name, value in environment(url).items():
            monkeypatch.setenv(name, value)
        with pytest.raises(StorageError, match="right to list, read, write and delete") as error:
            Objects("s3://there/run").create("a", b"x")
    assert "\n" not in str(error.value)
    assert SECRET not in str(error.value)


def test_a_store_that_does_not_answer_is_said_so(
    bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setattr("prefloop.data.storage.objects._SECONDS", 1)
    with pytest.raises(StorageError, match="does not answer: check the network"):
        Objects("s3://there/run").get("a")


@pytest.mark.parametrize("path", ["s3://bucket/a/b", "s3:/bucket/a/b", "s3://bucket//a/b/"])
def test_addresses_are_written_in_one_way(path: str) -> None:
    assert is_address(path)
    assert as_address(Path(path)) == as_address(path) == "s3://bucket/a/b"


@pytest.mark.parametrize(
    "path", ["s3://", "s3://user:word@bucket/a", "s3://bucket/../a", "s3://bucket/a?x=1"]
)
def test_what_is_no_address_is_refused(path: str) -> None:
    with pytest.raises(InputError, match="BUCKET/FOLDER") as error:
        as_address(path)
    assert "word" not in str(error.value)


def test_the_extra_is_asked_for_when_an_address_is_given() -> None:
    script = (
        "import sys; sys.modules['obstore'] = sys.modules['obstore.store'] = None\n"
        "from prefloop.data.errors import StorageError\n"
        "from prefloop.data.storage.objects import Objects\n"
        "import prefloop.pipeline.loop, prefloop.pipeline.commands.app\n"
        "try: list(Objects('gs://bucket/run').walk())\n"
        "except StorageError as error: print(error)"
    )
    result = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT, check=True
    )
    assert "pip install 'prefloop[gs]'" in result.stdout
