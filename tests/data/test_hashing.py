"""Revisions of model folders: what they cover, and what of large files is kept between starts."""

import hashlib
import os
from pathlib import Path

import pytest

from prefloop.data import hashing
from prefloop.data.hashing import derive_seed, derive_seeds, folder_revision


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A model whose weights count as large, and are older than the clock's grain."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "caches"))
    monkeypatch.setattr(hashing, "_LARGE", 8)
    monkeypatch.setattr(hashing, "_SETTLED_NS", -1)
    model = tmp_path / "model"
    model.mkdir()
    (model / "model.safetensors").write_bytes(b"weights and more weights")
    (model / "config.json").write_text("{}")
    return model


@pytest.fixture
def read(monkeypatch):
    """Names of the files that are read."""
    found: list[str] = []
    digest = hashing._digest
    monkeypatch.setattr(hashing, "_digest", lambda path: found.append(path.name) or digest(path))
    return found


def plain(folder: Path) -> str:
    """The revision by its definition."""
    whole = hashlib.blake2b(digest_size=6)
    for path in sorted(folder.iterdir()):
        whole.update(path.name.encode() + hashlib.blake2b(path.read_bytes()).digest())
    return whole.hexdigest()


def test_large_files_are_read_once(folder, read):
    assert [folder_revision(folder) for _ in range(3)] == [plain(folder)] * 3
    assert read.count("model.safetensors") == 1
    assert read.count("config.json") == 3


def test_a_changed_file_is_noticed_also_with_its_size_and_time_as_before(folder):
    before, weights = folder_revision(folder), folder / "model.safetensors"
    about = weights.stat()
    weights.write_bytes(b"weights and MORE weights")
    os.utime(weights, ns=(about.st_atime_ns, about.st_mtime_ns))
    assert folder_revision(folder) == plain(folder) != before


def test_a_file_that_changed_just_now_is_read_again(folder, read, monkeypatch):
    monkeypatch.setattr(hashing, "_SETTLED_NS", 3_600_000_000_000)
    assert folder_revision(folder) == folder_revision(folder) == plain(folder)
    assert read.count("model.safetensors") == 2


@pytest.mark.parametrize("content", ["", "[]", '{"model.safetensors": 3}', "\udcff", "[" * 9999])
def test_a_damaged_cache_is_passed_over(folder, content):
    folder_revision(folder)
    [kept] = (folder.parent / "caches" / "prefloop" / "hashes").iterdir()
    kept.write_bytes(content.encode("utf-8", "surrogateescape"))
    assert folder_revision(folder) == plain(folder)


def test_a_cache_that_cannot_be_written_is_done_without(folder):
    (folder.parent / "caches").write_text("a file where the folder should be")
    assert folder_revision(folder) == plain(folder)
    assert folder_revision(folder) == plain(folder)


def test_seeds_of_many_are_those_of_each() -> None:
    each = ["a", "", "\u00fc", "\ud800", "a\x1fb"]
    assert derive_seeds((3, "split"), each).tolist() == [
        derive_seed(3, "split", one) for one in each
    ]
    assert derive_seeds((3,), []).tolist() == []
