"""Pieces of a run that were lost, half-made or made with other settings, without any model."""

import asyncio
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

import prefloop
from prefloop.data.config import PromptsConfig
from prefloop.pipeline import redecide as redeciding
from prefloop.pipeline.config import dump_config
from prefloop.pipeline.policies.train_alone import find_sources
from prefloop.pipeline.publish.publishing import PublishOptions, publish_run
from prefloop.pipeline.redecide import finish_deciding, mark_undecided
from prefloop.pipeline.report.card import write_card
from prefloop.pipeline.run.context import RunContext
from prefloop.pipeline.run.run_dir import RunDir, RunError
from prefloop.pipeline.run.status import collect_status
from prefloop.pipeline.stages.filter import filter_round
from prefloop.pipeline.stages.lost_rows import restore_sample_quarantine
from prefloop.pipeline.stages.on_policy import refuse_lost_blocks
from prefloop.pipeline.stages.prompts import draw_prompts, read_prompts
from prefloop.pipeline.stages.write import write_round
from tests.helpers.runs import small_config
from tests.helpers.synthetic_run import write_run


class Killed(BaseException):
    """In place of a kill: nothing may catch it."""


@contextmanager
def killed_at(number: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Die at the durable operation ``number`` from here on, before it is done."""
    left = [number]
    with monkeypatch.context() as patched:
        for name in ("replace", "rename", "unlink", "rmdir"):
            real = getattr(os, name)

            def operate(*args: Any, _real: Any = real, **options: Any) -> Any:
                left[0] -= 1
                if left[0] < 0:
                    raise Killed
                return _real(*args, **options)

            patched.setattr(os, name, operate)
        yield


def context_of(run: RunDir) -> RunContext:
    return RunContext(run, 3, None, 1)


def read(run: RunDir, path: Path, count: int, first: int = 0, block_size: int = 4) -> None:
    rows = [
        {"prompt": f"Prompt {n} of some length {n * 7919}"} for n in range(first, first + count)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = PromptsConfig.model_validate({"train": {"path": str(path)}, "heldout_share": 0.2})
    read_prompts(context_of(run), settings, block_size=block_size)


def snapshot(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*.parquet")}


def test_prompts_changed_after_a_kill_leave_nothing_of_the_old(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clean = RunDir(tmp_path / "clean")
    read(clean, tmp_path / "p.jsonl", 6, first=100)
    expected = snapshot(clean.root)
    for number in range(9):
        run = RunDir(tmp_path / f"run-{number}")
        with suppress(Killed), killed_at(number, monkeypatch):
            read(run, tmp_path / "p.jsonl", 30)
        if run.prompt_counts.exists():
            break
        read(run, tmp_path / "p.jsonl", 6, first=100)
        assert snapshot(run.root) == expected
    assert number > 3


def test_lost_prompts_are_made_again_or_the_run_stops(tmp_path: Path) -> None:
    run, source = RunDir(tmp_path / "run"), tmp_path / "p.jsonl"
    read(run, source, 30)
    expected = snapshot(run.root)
    for path in [*run.prompts.folder.iterdir(), *run.heldout.folder.iterdir()]:
        path.write_bytes(path.read_bytes()[:100])
        read(run, source, 30)
        assert snapshot(run.root) == expected
        path.unlink()
        run.prompt_counts.unlink()
        read(run, source, 30)
        assert snapshot(run.root) == expected
    run.prompts.remove([1])
    with pytest.raises(RunError, match="their source now gives others"):
        read(run, source, 30, first=1)


def test_prompts_drawn_with_other_settings_are_drawn_again(tmp_path: Path) -> None:
    run = RunDir(tmp_path / "run")
    read(run, tmp_path / "p.jsonl", 30)
    context = context_of(run).round(0)
    draw_prompts(context, per_round=20, per_leg=None, block_size=2)
    assert draw_prompts(context, per_round=6, per_leg=None, block_size=2) == 3
    assert context.folder.prompts.rows() == 6
    draw_prompts(context, per_round=None, per_leg=None, block_size=4)
    assert context.folder.prompts.table().equals(run.prompts.table())


@pytest.fixture
def written(tmp_path: Path) -> RunDir:
    """A run with one written round, single answers included."""
    run = write_run(tmp_path / "run", rounds=1, trained=False)
    run.round(0).written.unlink()
    run.round(0).triples.remove()
    asyncio.run(write_round(context_of(run).round(0), test_share=0.3, unpaired=True))
    return run


def test_lost_files_of_the_dataset_are_written_again(written: RunDir) -> None:
    context = context_of(written).round(0)
    expected = snapshot(written.root)
    files = [*written.dataset.rglob("*.parquet"), *context.folder.triples.paths()]
    assert len(files) == 9
    for path in files:
        for spoil in (Path.unlink, lambda file: file.write_bytes(b"PAR1")):
            spoil(path)
            asyncio.run(write_round(context, test_share=0.3, unpaired=True))
            assert snapshot(written.root) == expected
    context.folder.written.write_text('{"tra')
    asyncio.run(write_round(context, test_share=0.3, unpaired=True))
    assert snapshot(written.root) == expected


def test_a_block_sampled_in_a_training_that_is_over_cannot_be_made_again(written: RunDir) -> None:
    context = context_of(written).round(0)
    refuse_lost_blocks(context)
    context.folder.candidates.remove([1])
    with pytest.raises(RunError, match=r"candidate/part-00001.parquet is missing"):
        refuse_lost_blocks(context)


def test_a_lost_quarantine_shard_is_counted_all_the_same(written: RunDir, caplog) -> None:
    context = context_of(written).round(0)
    folder = context.folder
    shards = folder.quarantine("sample")
    shards.remove()
    before = collect_status(written).as_dict()["rounds"][0]["quarantined"]
    table = folder.candidates.read(1)
    failed = table["prompt_id"][0].as_py()
    folder.candidates.replace(1, table.filter(pc.not_equal(table["prompt_id"], failed)))
    restore_sample_quarantine(context)
    [row] = shards.read(1).to_pylist()
    assert (row["reason"], json.loads(row["content"])["prompt_id"]) == ("reason_lost", failed)
    assert f"{shards.path(1)} is missing: why 1 prompt(s) have no answer" in caplog.text
    after = collect_status(written).as_dict()["rounds"][0]["quarantined"]
    assert before.get("sample", {}) == {}
    assert after["sample"] == {"reason_lost": 1}
    content = shards.path(1).read_bytes()
    restore_sample_quarantine(context)
    assert shards.path(1).read_bytes() == content
    assert shards.indices() == [1]
    shards.remove()
    context.note("sample", 0.0, block=1, failed=0)  # then nothing has to be looked at
    restore_sample_quarantine(context)
    assert shards.indices() == []


def test_a_written_round_is_written_once(written: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    with killed_at(0, monkeypatch):
        asyncio.run(write_round(context_of(written).round(0), test_share=0.3, unpaired=True))


def test_a_test_share_changed_in_the_middle_leaves_no_file_of_the_old(
    written: RunDir, tmp_path: Path
) -> None:
    context = context_of(written).round(0)
    context.folder.written.unlink()  # as a kill before it leaves it
    asyncio.run(write_round(context, test_share=0.0, unpaired=False))
    names = sorted(
        path.relative_to(written.dataset).as_posix() for path in written.dataset.rglob("*.parquet")
    )
    assert [name for name in names if name.startswith(("data", "unpaired"))] == [
        "data/train-round-000-00000.parquet"
    ]
    assert json.loads(context.folder.written.read_text())["test"] == 0


def test_a_dataset_that_is_half_written_is_not_handed_on(
    written: RunDir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    context = context_of(written).round(0)
    written.config.write_text(dump_config(small_config()))
    shares = {"unpaired": True, "every_answer": False}

    def write(share: float) -> None:
        context.folder.written.unlink(missing_ok=True)
        asyncio.run(write_round(context, test_share=share, **shares))
        write_card(small_config(write={"test_share": share}), written)

    def prompts(split: str) -> set[str]:
        files = (written.dataset / "data").glob(f"{split}-*.parquet")
        return {row for file in files for row in pq.read_table(file)["prompt_id"].to_pylist()}

    def handed_on() -> Iterator[Callable[[], Any]]:
        yield lambda: prefloop.export(written.root, to="openai", out=tmp_path / "out")
        yield lambda: find_sources([written.root])
        options = PublishOptions("mit", dry_run=True, allow_findings=True)
        yield lambda: publish_run(written, "org/name", options)

    write(0.3)
    for hand_on in handed_on():
        hand_on()
    shutil.rmtree(tmp_path / "out")
    leaked = False
    for number in range(40):
        write(0.7)
        with suppress(Killed), killed_at(number, monkeypatch):
            write(0.3)
        in_both = bool(prompts("train") & prompts("test"))
        leaked = leaked or in_both
        if in_both or not written.card.exists():
            for hand_on in handed_on():
                with pytest.raises(RunError, match=r"is not finished .* given again, writes"):
                    hand_on()
    assert leaked, "no kill came between the files of one split and those of the other"
    assert not (tmp_path / "out").exists()


def test_deciding_again_killed_anywhere_is_finished_by_the_next_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(redeciding, "write_report", lambda run: None)
    config = small_config(filter={"filters": []}, write={"test_share": 0.3})

    def changed(name: str) -> RunDir:
        """A decided run one of whose votes changed since."""
        run = write_run(tmp_path / name, rounds=1, blocks=2, trained=False)
        context = context_of(run).round(0)
        context.folder.forget_decisions()
        asyncio.run(filter_round(context, config.label, config.filter))
        asyncio.run(write_round(context, test_share=0.3, unpaired=False))
        votes = run.round(0).votes
        mark_undecided(run)
        table = votes.read(1)
        rows = [
            row | {"preference": "b" if row["preference"] == "a" else "a", "p_a": None}
            for row in table.to_pylist()
        ]
        votes.replace(1, pa.Table.from_pylist(rows, table.schema))
        return run

    clean = changed("clean")
    finish_deciding(config, clean)
    expected = snapshot(clean.root)
    assert not clean.undecided.exists()
    number = 0
    while True:
        run = changed(f"run-{number}")
        assert snapshot(run.root) != expected
        old = {path.name for path in run.dataset.rglob("*.parquet")}
        try:
            with killed_at(number, monkeypatch):
                finish_deciding(config, run)
            break
        except Killed:
            assert run.decides_again()
        assert old <= {path.name for path in run.dataset.rglob("*.parquet")}
        assert "votes changed" in collect_status(run).state
        finish_deciding(config, run)
        assert snapshot(run.root) == expected
        assert not run.decides_again()
        assert run.card.exists()
        number += 3
    assert number > 9
