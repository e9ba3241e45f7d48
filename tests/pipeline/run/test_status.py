"""Status: the counts of a run at any point of it."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from rich.console import Console

from prefloop.data import schemas
from prefloop.pipeline.report.status_text import render_status
from prefloop.pipeline.run.run_dir import RunDir
from prefloop.pipeline.run.status import NOT_BEGUN, RunStatus, collect_status
from tests.helpers.processes.loading import loaded_by
from tests.helpers.synthetic_run import (
    BLOCK,
    JUDGE,
    write_block,
    write_dataset,
    write_metrics,
    write_run,
    write_start,
)


def _text(status: RunStatus) -> str:
    console = Console(width=120, record=True, file=io.StringIO())
    console.print(render_status(status))
    return console.export_text()


def _check_sums(status: RunStatus) -> None:
    assert status.prompts.adds_up
    for each in status.rounds:
        assert each.adds_up
        assert each.pairs == each.kept + sum(each.dropped.values())
    json.dumps(status.as_dict())
    assert "state" in _text(status)


def test_finished_run_counts(tmp_path: Path) -> None:
    status = collect_status(write_run(tmp_path / "run", blocks=3))
    _check_sums(status)
    assert status.state == "done"
    prompts = status.prompts
    assert (prompts.read, prompts.kept, prompts.heldout) == (31, 24, 4)
    assert prompts.dropped_by_reason == {"exact_duplicate": 2}
    assert prompts.quarantined_by_reason == {"invalid_json": 1}
    first = status.rounds[0]
    assert first.prompts == 3 * BLOCK
    assert first.candidates == 4 * first.prompts
    assert first.samples == 5 * first.prompts  # one of the four answers was drawn twice
    assert first.pairs == 3 * first.prompts
    assert first.kept == first.triples == first.prompts
    assert first.dropped == {"length_ratio": 24, "tie": 24}
    assert first.votes == {JUDGE: 144, "verifier": 72}
    assert first.invalid_votes == {JUDGE: 9}
    assert first.usage["label"].completion_tokens == 144
    assert first.usage["label"].cost == pytest.approx(0.144)
    assert first.usage["sample"].prompt_tokens == 15 * first.samples
    assert first.seconds["sample"] == 6.0
    assert status.seconds["prompts"] == 0.5
    rate = first.win_rates[0]
    assert (rate.labeler, rate.against, rate.value) == ("jury", "start", pytest.approx(0.58))


def test_a_run_of_an_earlier_version_counts_the_same(tmp_path: Path) -> None:
    """Whose shards have no counts in their footers."""
    run = write_run(tmp_path / "run")
    expected = collect_status(run)
    for path in run.root.rglob("part-*.parquet"):
        pq.write_table(pq.read_table(path).replace_schema_metadata(None), path)
    assert collect_status(run) == expected


def test_sampled_tokens_count_every_copy(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", rounds=1, blocks=1)
    rows = run.round(0).candidates.table(["tokens", "copies"]).to_pylist()
    expected = sum(row["tokens"] * row["copies"] for row in rows)
    assert collect_status(run).rounds[0].usage["sample"].completion_tokens == expected


def test_missing_directory_has_a_status(tmp_path: Path) -> None:
    status = collect_status(RunDir(tmp_path / "nothing"))
    _check_sums(status)
    assert status.state == NOT_BEGUN
    assert not (tmp_path / "nothing").exists()


def test_status_at_every_stage(tmp_path: Path) -> None:
    run = RunDir(tmp_path / "run")
    states = []

    def look() -> RunStatus:
        status = collect_status(run)
        _check_sums(status)
        states.append(status.state)
        return status

    write_start(run, rounds=2, blocks=2)
    counts = run.prompt_counts.read_text()
    run.prompt_counts.unlink()
    assert not look().prompts.complete
    run.prompt_counts.write_text(counts)
    look()
    folder = run.round(0)
    for block in range(2):  # blocks are drawn for the whole round before sampling begins
        folder.prompts.write(block, run.prompts.read(block))
    look()
    write_block(run, folder, 0)
    status = look()
    assert status.rounds[0].progress["label"].done == 1
    assert status.rounds[0].progress["label"].total == 2
    write_block(run, folder, 1)
    look()
    write_dataset(run, folder)
    look()
    write_metrics(run, folder)
    look()
    assert states == [
        "reading prompts",
        "prompts read, no round begun",
        "round 0: sample",
        "round 0: sample",
        "round 0: write",
        "round 0: train",
        "round 0 done, next not begun",
    ]


def test_dataset_only_run_is_done_without_training(tmp_path: Path) -> None:
    status = collect_status(write_run(tmp_path / "run", rounds=1, trained=False))
    assert status.state == "done"
    assert "train" not in status.rounds[0].progress


def test_no_heldout_prompts_means_no_evaluation(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", rounds=1)
    run.round(0).metrics.path(1).unlink()
    counts = json.loads(run.prompt_counts.read_text())
    assert collect_status(run).state == "round 0: evaluate"
    run.prompt_counts.write_text(json.dumps(counts | {"read": counts["read"] - 4, "heldout": 0}))
    assert collect_status(run).state == "done"


def test_quarantine_and_evaluation_are_counted(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", rounds=1, blocks=1)
    row = {
        "stage": "sample", "round": 0, "source": "p", "row": 1, "field": None,
        "reason": "context_overflow", "detail": "", "content": "",
    }  # fmt: skip
    quarantine = run.round(0).quarantine("sample")
    quarantine.write(0, schemas.QUARANTINE.empty_table().from_pylist([row], schemas.QUARANTINE))
    run.answers(0).write(0, run.round(0).candidates.read(0))
    run.answers(1).write(0, run.round(0).candidates.read(0))
    run.match_votes(1, 0).write(0, run.round(0).votes.read(0))
    each = collect_status(run).rounds[0]
    assert each.quarantined == {"sample": {"context_overflow": 1}}
    sampled, labelled = each.usage["sample"], each.usage["label"]
    assert each.usage["evaluate"].completion_tokens == (
        2 * sampled.completion_tokens + labelled.completion_tokens
    )


def test_torn_journal_line_and_names_like_markup_are_harmless(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", rounds=1, blocks=1)
    with run.journal.open("a") as journal:
        journal.write('{"stage": "sample", "sec')
    text = _text(collect_status(run))
    assert JUDGE in text
    assert "58.0" in text


def test_a_status_loads_neither_pandas_nor_the_settings(tmp_path: Path) -> None:
    """Each takes as long as all the rest of it."""
    run = write_run(tmp_path / "run", rounds=1, blocks=1)
    slow = {"pandas", "prefloop.pipeline.config", "jinja2", "torch"}
    assert not _loaded_by_status(run) & (slow | {"prefloop.pipeline.engines.settings"})


def test_a_status_without_training_loads_no_settings_at_all(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", rounds=1, blocks=1, trained=False)
    names = ("labelers.config", "training.config", "pipeline.engines.settings")
    assert not _loaded_by_status(run) & {f"prefloop.{name}" for name in names}


def _loaded_by_status(run: RunDir) -> set[str]:
    return loaded_by(
        "from prefloop.pipeline.commands.app import app\n"
        f"app(['status', {str(run.root)!r}], standalone_mode=False)"
    )
