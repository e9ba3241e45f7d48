"""From a run to a table for people, and from their labels to calibrations and an estimate."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from typer.testing import CliRunner

from prefloop.data.errors import InputError
from prefloop.labelers.jury.calibrator import read_calibrator
from prefloop.pipeline.commands.app import app
from prefloop.pipeline.judging.calibrate import _path, calibrate_run
from prefloop.pipeline.judging.calibrate_text import render_run_calibration
from prefloop.pipeline.judging.queue import (
    QUEUE_COLUMNS,
    _cell,
    _uncelled,
    read_people,
    write_queue,
)
from prefloop.pipeline.run.run_dir import RunDir
from tests.helpers.runs import JUDGE, VERIFIER, run_small, small_config


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    config = small_config(
        prompts={"train": {"path": "embedded:prompts", "limit": 40},
                 "heldout": {"path": "embedded:heldout", "limit": 4}},
        label={"labelers": [JUDGE, VERIFIER]},
        filter={"filters": [], "strategy": {"type": "all", "min_margin": -1}},
    )  # fmt: skip
    return run_small(tmp_path_factory.mktemp("queue") / "run", config)


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as handle:
        return list(csv.DictReader(handle))


def fill_in(path: Path, verdict) -> None:
    rows = rows_of(path)
    with path.open("w", newline="", encoding="utf-8") as handle:
        writer = csv.DictWriter(handle, QUEUE_COLUMNS)
        writer.writeheader()
        writer.writerows({**row, "verdict": verdict(row)} for row in rows)


def test_people_agree_with_the_verifier(run: RunDir, tmp_path: Path) -> None:
    table = tmp_path / "queue.csv"
    number = write_queue(run, table, n=60, strategy="mixed", seed=1)
    assert number == len(rows_of(table)) == 60
    texts = {
        row["candidate_id"]: row["text"] for row in run.round(0).candidates.table().to_pylist()
    }
    scores = {}
    for vote in run.round(0).votes.table().to_pylist():
        if vote["labeler"] == "verifier":
            scores |= {vote["a_id"]: vote["score_a"], vote["b_id"]: vote["score_b"]}
    firsts = 0
    decisions = {row["pair_id"]: row for row in run.round(0).decisions.table().to_pylist()}
    for row in rows_of(table):
        assert row["answer_1"] == _cell(texts[row["answer_1_id"]])
        assert row["answer_2"] == _cell(texts[row["answer_2_id"]])
        assert row["verdict"] == ""
        firsts += decisions[row["pair_id"]]["chosen_id"] == row["answer_1_id"]
    assert 15 <= firsts <= 45  # where the chosen one stands is drawn

    def verdict(row: dict[str, str]) -> str:
        first, second = scores[row["answer_1_id"]], scores[row["answer_2_id"]]
        return "tie" if first == second else "1" if first > second else "2"

    fill_in(table, verdict)
    found = calibrate_run(run, [str(table)], out=tmp_path / "out", method="platt")
    assert found.labels == 60
    assert not found.uniform
    assert found.skipped == {"verifier": "it gives no probabilities"}
    [judge] = found.calibrated
    assert judge.labeler == "judge"
    fitted = read_calibrator(Path(judge.path))
    assert fitted.n == judge.n
    assert found.accuracy is not None
    # The truth is known here: how often the kept pairs are as the verifier scores them.
    kept = [row for row in decisions.values() if row["kept"]]
    right = [
        0.5 if scores[row["chosen_id"]] == scores[row["rejected_id"]]
        else float(scores[row["chosen_id"]] > scores[row["rejected_id"]])
        for row in kept
    ]  # fmt: skip
    assert found.accuracy.pairs == len(kept)
    estimate = found.accuracy.estimate
    assert estimate.low <= sum(right) / len(right) <= estimate.high
    json.dumps(found.as_dict(), allow_nan=False)


def test_the_order_of_the_rows_tells_nothing(run: RunDir, tmp_path: Path) -> None:
    """People who stop in the middle have labelled a part that is like the whole."""
    decisions = {row["pair_id"]: row for row in run.round(0).decisions.table().to_pylist()}
    tables = [tmp_path / name for name in ("one.csv", "same.csv", "other.csv")]
    for table, seed in zip(tables, (1, 1, 2), strict=True):
        write_queue(run, table, n=1000, strategy="uncertain", seed=seed)
    one, same, other = ([row["pair_id"] for row in rows_of(table)] for table in tables)
    assert one == same
    assert sorted(one) == sorted(other)
    assert one != other
    sure = [decisions[pair]["p_chosen"] for pair in one]
    ranks = np.argsort(np.argsort(sure, kind="stable"))
    assert abs(np.corrcoef(ranks, np.arange(len(ranks)))[0, 1]) < 0.4


def test_no_two_labelers_share_a_file_and_old_files_are_found(tmp_path: Path) -> None:
    names = ["a/b", "a-b", "a:b", "a b"]
    files = [_path(tmp_path, name) for name in names]
    assert len(set(files)) == 4
    assert files[1] == tmp_path / "a-b.json"
    old = tmp_path / "a-b.json"
    old.write_text(json.dumps({"labeler": "a/b"}))  # as older versions wrote it
    assert _path(tmp_path, "a/b") == old
    assert _path(tmp_path, "a-b") not in (old, *files)
    old.write_text("{")
    assert _path(tmp_path, "a-b") == old


def test_several_people_and_ties(run: RunDir, tmp_path: Path) -> None:
    tables = [tmp_path / f"{name}.csv" for name in "xyz"]
    for table, verdict in zip(tables, ("1", "1", "2"), strict=True):
        write_queue(run, table, n=5, strategy="random", seed=0)
        fill_in(table, lambda row, verdict=verdict: verdict)
    first = {row["pair_id"]: row["answer_1_id"] for row in rows_of(tables[0])}
    by_three = read_people(list(map(str, tables)), run)
    for pair, label in by_three.items():
        assert label.side_of(first[pair]) == 1.0
    for label in read_people([str(tables[0]), str(tables[2])], run).values():
        assert label.side_of(label.a_id) == label.side_of(label.b_id) == 0.5


def test_mistakes_in_a_table_are_one_line(run: RunDir, tmp_path: Path) -> None:
    table = tmp_path / "queue.csv"
    write_queue(run, table, n=25, strategy="random", seed=0)
    with pytest.raises(InputError, match="exists: people may have filled it in"):
        write_queue(run, table, n=5, strategy="random", seed=0)
    with pytest.raises(InputError, match="nobody filled in a `verdict`"):
        read_people([str(table)], run)
    fill_in(table, lambda row: "left")
    with pytest.raises(InputError, match="'left' is none of 1, 2, tie"):
        read_people([str(table)], run)
    fill_in(table, lambda row: "1")
    rows = rows_of(table)
    for field, said in (
        ("pair_id", "has no pair 123"),
        ("answer_1_id", "has no answer 123"),
        ("inclusion", "'123' is no probability"),
    ):
        other = tmp_path / f"{field}.jsonl"
        other.write_text(json.dumps({**rows[0], field: "123"}))
        with pytest.raises(InputError, match=said):
            read_people([str(other)], run)
    with pytest.raises(InputError, match="is none of isotonic, platt"):
        calibrate_run(run, [str(table)], out=tmp_path, method="magic")


def test_people_write_verdicts_in_many_ways(run: RunDir, tmp_path: Path) -> None:
    spellings = {
        "1": ["1", "1.0", " A ", "first", "[[a]]", "answer_1"],
        "2": ["2", "2.0", "b", "Second", "answer_2", "model_b"],
        "tie": ["tie", "Both", "0", "1.5", "equal", "0.5"],
    }
    for said, (way, text) in enumerate(
        (way, text) for way, texts in spellings.items() for text in texts
    ):
        table = tmp_path / f"{said}.csv"
        write_queue(run, table, n=3, strategy="random", seed=0)
        fill_in(table, lambda row, text=text: text)
        first = {row["pair_id"]: row["answer_1_id"] for row in rows_of(table)}
        for pair, label in read_people([str(table)], run).items():
            assert label.side_of(first[pair]) == {"1": 1.0, "2": 0.0, "tie": 0.5}[way], text
    places = iter("01" * 20)
    table = tmp_path / "zero.csv"
    write_queue(run, table, n=4, strategy="random", seed=0)
    fill_in(table, lambda row: next(places))
    with pytest.raises(InputError, match=r"'verdict' is 0 or 1 in all rows.*: write 1, 2 or tie"):
        read_people([str(table)], run)


def test_a_table_with_semicolons_is_read_or_says_so(run: RunDir, tmp_path: Path) -> None:
    table = tmp_path / "q.csv"
    write_queue(run, table, n=3, strategy="random", seed=0)
    fill_in(table, lambda row: "2")
    rows = rows_of(table)
    with table.open("w", newline="") as handle:
        writer = csv.DictWriter(handle, list(rows[0]), delimiter=";")
        writer.writeheader()
        writer.writerows(rows)
    said = ""
    try:
        found = len(read_people([str(table)], run))
    except InputError as error:
        found, said = 0, str(error)
    assert found == 3 or "is the delimiter ';'?" in said


def test_too_few_labels_say_so(run: RunDir, tmp_path: Path) -> None:
    table = tmp_path / "queue.csv"
    write_queue(run, table, n=10, strategy="random", seed=0)
    fill_in(table, lambda row: "1")
    found = calibrate_run(run, [str(table)], out=tmp_path / "out")
    assert "too few" in found.skipped["judge"]
    assert found.accuracy is None
    assert "needs at least 20" in (found.no_accuracy or "")
    assert "unknown" in render_run_calibration(found)


def test_the_commands(run: RunDir, tmp_path: Path) -> None:
    table = tmp_path / "q.csv"
    command = CliRunner().invoke
    asked = command(app, ["queue", str(run.root), "--out", str(table), "--n", "40"])
    assert "40 pairs" in asked.stdout
    fill_in(table, lambda row: "1" if len(row["answer_1"]) > len(row["answer_2"]) else "2")
    out = str(tmp_path / "c")
    said = command(app, ["calibrate", str(run.root), "--people", str(table), "--out", out])
    assert "accuracy of the" in said.stdout
    wrong = command(app, ["queue", str(run.root), "--out", out, "--strategy", "best"])
    assert wrong.exit_code == 2


@given(st.text())
@example('=HYPERLINK("http://x")')
@example("\t=1+1")
@example("-2+3")
@example("\r\n@SUM(1)")
def test_no_cell_is_a_formula_and_every_cell_comes_back(text: str) -> None:
    cell = _cell(text)
    assert cell[:1] not in {"=", "+", "-", "@", "\t", "\r", "\n"}
    if not text.startswith("'"):
        assert _uncelled(cell) == text


def test_formulas_of_a_run_are_text_in_the_queue(
    run: RunDir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("prefloop.pipeline.judging.queue._shown", lambda _: "=cmd|' /C calc'!A0")
    table = tmp_path / "queue.csv"
    write_queue(run, table, n=5, strategy="random", seed=0)
    with table.open(newline="") as handle:
        rows = list(csv.DictReader(handle))
    assert {row["prompt"] for row in rows} == {"'=cmd|' /C calc'!A0"}
    for number, row in enumerate(rows):
        row["verdict"] = ("1", "'2", "tie")[number % 3]
    with table.open("w", newline="") as handle:
        writer = csv.DictWriter(handle, QUEUE_COLUMNS)
        writer.writeheader()
        writer.writerows(rows)
    found = read_people([str(table)], run)
    assert set(found) == {row["pair_id"] for row in rows}
    for row in rows:
        said = {"1": 1.0, "'2": 0.0, "tie": 0.5}[row["verdict"]]
        assert found[row["pair_id"]].side_of(row["answer_1_id"]) == said
