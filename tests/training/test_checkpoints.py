"""Checkpoints on disk: whose they are, whether they are whole, and a disk that is full."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest
import torch

from prefloop.training.errors import TrainingError
from prefloop.training.session.checkpoint_folder import (
    MARKER,
    adopt_earlier,
    checkpoint_folder,
    damage_of,
    mark,
    resumable,
)
from prefloop.training.session.records import (
    RECORD,
    guard_of,
    harm_to,
    read_record,
    summary_of,
    write_record,
)
from prefloop.training.session.shortage import full_disk_is_named, full_memory_is_named


def checkpoint(folder: Path, step: int, fingerprint: str = "mine", *, sums: bool = True) -> Path:
    made = folder / f"checkpoint-{step}"
    made.mkdir(parents=True)
    (made / "model.safetensors").write_bytes(b"weights" * step)
    (made / "optimizer.pt").write_bytes(b"moments" * step)
    if sums:
        mark(made, fingerprint)
    else:
        (made / MARKER).write_text(fingerprint)
    return made


def test_two_models_of_a_folder_have_two_folders_of_checkpoints(tmp_path: Path) -> None:
    one, other = (checkpoint_folder(tmp_path / name) for name in ("a", "b"))
    assert one != other
    assert {one.parent, other.parent} == {tmp_path}


def test_what_an_earlier_version_left_is_taken_over_and_nothing_else(tmp_path: Path) -> None:
    old, out = tmp_path / "checkpoints", tmp_path / "policy"
    checkpoint(old, 4, sums=False)
    checkpoint(old, 500, "someone else's", sums=False)
    (old / "notes").mkdir()
    (old / "notes" / "log.txt").write_text("mine")
    (old / "put-aside" / "3").mkdir(parents=True)
    adopt_earlier(out, "mine")
    new = checkpoint_folder(out)
    assert resumable(new, "mine") == str(new / "checkpoint-4")
    assert (new / "put-aside" / "3").is_dir()
    assert (old / "notes" / "log.txt").read_text() == "mine"
    assert (old / "checkpoint-500" / "model.safetensors").is_file()
    assert not (old / "checkpoint-4").exists()


def test_a_foreign_folder_is_not_touched(tmp_path: Path) -> None:
    theirs = checkpoint(tmp_path / "checkpoints", 500, "theirs", sums=False)
    adopt_earlier(tmp_path / "policy", "mine")
    assert (theirs / "model.safetensors").is_file()
    assert not checkpoint_folder(tmp_path / "policy").exists()


def _cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-3])


def _flip(file: Path) -> None:
    file.write_bytes(b"W" + file.read_bytes()[1:])


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.pt", "prefloop_sums.json"])
@pytest.mark.parametrize("harm", [_cut, _flip, Path.unlink])
def test_a_damaged_checkpoint_is_noticed_and_the_one_before_is_taken(
    tmp_path: Path, name: str, harm, caplog: pytest.LogCaptureFixture
) -> None:
    good, bad = checkpoint(tmp_path, 2), checkpoint(tmp_path, 4)
    assert resumable(tmp_path, "mine") == str(bad)
    harm(bad / name)
    if not (bad / "prefloop_sums.json").exists():  # then it is as an earlier version left it
        assert damage_of(bad) is None
        return
    assert resumable(tmp_path, "mine") == str(good)
    assert "checkpoint-4 is damaged" in caplog.text
    assert name in caplog.text
    assert not bad.exists()
    assert "\n" not in caplog.messages[0]


@pytest.mark.parametrize("harm", [_cut, _flip, Path.unlink])
def test_a_damaged_model_is_noticed_where_it_would_be_taken_for_done(tmp_path: Path, harm) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    write_record(tmp_path, "mine", {"steps": 3, "guard": None}, [{"step": 1}])
    assert read_record(tmp_path, "mine") == ({"steps": 3, "guard": None}, [{"step": 1}])
    harm(tmp_path / "model.safetensors")
    with pytest.raises(TrainingError, match=r"is damaged \(model\.safetensors.*delete that folder"):
        read_record(tmp_path, "mine")


def test_a_record_of_an_earlier_version_is_read(tmp_path: Path) -> None:
    (tmp_path / RECORD).write_text('{"steps": 3, "fingerprint": "mine"}\n{"step": 1}\n')
    assert read_record(tmp_path, "mine") == ({"steps": 3}, [{"step": 1}])
    (tmp_path / RECORD).write_text('{"steps": 3, "finger')
    assert summary_of(tmp_path) is None
    with pytest.raises(TrainingError, match="was not made from these data"):
        read_record(tmp_path, "mine")


def test_the_guard_is_read_from_the_model(tmp_path: Path) -> None:
    assert guard_of(tmp_path) is None
    write_record(tmp_path, "mine", {"guard": {"guard": "margin"}}, [])
    assert guard_of(tmp_path) == {"guard": "margin"}


def _safetensors() -> Exception:
    from safetensors import SafetensorError

    return SafetensorError(
        "Error while serializing: I/O error: No space left on device (os error 28)"
    )


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        OSError(errno.EDQUOT, "Disk quota exceeded"),
        RuntimeError("[enforce fail at inline_container.cc:664] . unexpected pos 64 vs 0"),
        RuntimeError("PytorchStreamWriter failed writing file data/0: file write failed"),
        _safetensors(),
    ],
)
def test_a_full_disk_is_one_line(tmp_path: Path, error: Exception) -> None:
    with (
        pytest.raises(TrainingError, match="the disk is full") as caught,
        full_disk_is_named(tmp_path),
    ):
        raise error
    assert "\n" not in str(caught.value)


def _no_memory() -> Exception:
    """What torch raises where the main memory does not hold a tensor: 128 PiB."""
    with pytest.raises(RuntimeError) as caught:
        torch.empty(1 << 55)
    return caught.value


@pytest.mark.parametrize(
    "error", [_no_memory(), torch.OutOfMemoryError("CUDA out of memory."), MemoryError()]
)
def test_a_training_without_memory_is_one_line(tmp_path: Path, error: Exception) -> None:
    with (
        pytest.raises(TrainingError, match=r"out of memory.*train\.batch_size") as caught,
        full_memory_is_named(tmp_path),
    ):
        raise error
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "error", [RuntimeError("shapes"), OSError(errno.ENOENT, "no"), KeyError("x"),
              TrainingError("loss became nan"), KeyboardInterrupt()],
)  # fmt: skip
def test_other_errors_pass_through(tmp_path: Path, error: BaseException) -> None:
    with (
        pytest.raises(type(error)) as caught,
        full_disk_is_named(tmp_path),
        full_memory_is_named(tmp_path),
    ):
        raise error
    assert caught.value is error


def test_a_model_is_known_to_be_whole_by_its_record(tmp_path: Path) -> None:
    model = checkpoint(tmp_path, 1)
    assert harm_to(model) is None  # nothing is known of it
    write_record(model, "mine", {}, [])
    assert harm_to(model) is None
    record = (model / RECORD).read_text()
    (model / RECORD).write_text(record[:20])
    assert harm_to(model) == f"is damaged ({RECORD} cannot be read)"
    (model / RECORD).write_text(record)
    (model / "model.safetensors").unlink()
    assert harm_to(model) == "is damaged (model.safetensors is missing)"
    assert harm_to(tmp_path / "nothing") == "is missing"
