"""Answers that are there already, labelled again: alone, and beside fresh ones."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from typer.testing import CliRunner

import prefloop
from prefloop.data.shards import ShardFolder
from prefloop.pipeline.commands.app import app
from prefloop.pipeline.config import ConfigError, validate_config
from prefloop.pipeline.run.run_dir import RunDir, RunError
from tests.helpers.servers import Handler, faulty_server

Row = dict[str, Any]
BY_LENGTH = {"type": "verifier", "name": "length", "function": "tests.helpers.scores:length"}
EVERY = {"strategy": {"type": "all"}, "filters": []}
DATA: list[Row] = [
    {"prompt": "Hi?", "chosen": "Yes, hello.", "rejected": "No.", "chosen_model": "big",
     "rejected_model": "small"},
    {"prompt": "Hi?", "chosen": "Yes, hello.", "rejected": "Go away, please do.",
     "chosen_model": "big", "rejected_model": "tiny"},
    {"prompt": "Name a colour.",
     "generations": ["<think>Hm.</think>Red.", "Deep blue.", " ", "Red."],
     "ratings": [4, 5, 3, 2], "generation_models": ["a", "b", "c", "d"]},
    {"prompt": "Name a bird.", "chosen": "A wren.", "rejected": ""},
]  # fmt: skip


def write(path: Path, rows: list[Row]) -> Path:
    path.write_text("\n".join(map(json.dumps, rows)) + "\nbroken")
    return path


def judge_file(folder: Path, **more: Any) -> Path:
    path = folder / "judge.yaml"
    path.write_text(json.dumps({**BY_LENGTH, "filter": EVERY, **more}))  # JSON is YAML
    return path


def rows_of(shards: ShardFolder) -> list[Row]:
    rows: list[Row] = shards.table().to_pylist()
    return rows


def texts(run: RunDir) -> dict[str, Row]:
    return {row["candidate_id"]: row for row in rows_of(run.round(0).candidates)}


def test_the_command_makes_a_run_of_any_layout(tmp_path: Path) -> None:
    data, out = write(tmp_path / "d.jsonl", DATA), tmp_path / "out"
    command = ["label", str(data), "--judge", str(judge_file(tmp_path)), "--out", str(out)]
    said = CliRunner().invoke(app, command)
    assert said.exit_code == 0, said.output
    # 11 characters against 3: right; against 19: wrong; Red. against Deep blue.: right, twice.
    assert "length agrees with given on 0.667" in said.output
    assert "of 3 pairs" in said.output
    run = RunDir(out)
    found = {row["text"]: row for row in texts(run).values()}
    assert {text: row["policy"] for text, row in found.items()} == {
        "Yes, hello.": "big", "No.": "small", "Go away, please do.": "tiny", "Red.": "a",
        "Deep blue.": "b",
    }  # fmt: skip
    assert {row["origin"] for row in found.values()} == {"given"}
    assert (found["Red."]["reasoning"], found["Red."]["copies"]) == ("Hm.", 2)
    assert found["Yes, hello."]["tokens"] == len("Yes, hello.") // 4 + 1
    status = prefloop.status(out)
    assert status.state == "done"
    assert status.prompts.adds_up
    assert status.prompts.quarantined_by_reason == {"broken_json": 1, "empty_answer": 1}
    assert status.rounds[0].votes == {"length": 3, "given": 4}
    # What the data say decides nothing: the longer answer is chosen everywhere.
    triples = rows_of(run.round(0).triples)
    assert len(triples) == 3
    by_id = texts(run)
    assert all(len(by_id[one["chosen_id"]]["text"]) > len(by_id[one["rejected_id"]]["text"])
               for one in triples)  # fmt: skip
    assert {tuple(one["labelers"]) for one in triples} == {("length",)}
    card = run.card.read_text()
    assert f"answers in `{data}`" in card
    assert "samples a prompt" not in card
    assert "`given` (given: the labels that the answers came with, which decide nothing)" in card
    assert prefloop.agreement(out).raw.value == pytest.approx(2 / 3)
    pairs = sum(len(split) for split in prefloop.Run(out).load_dataset().values())
    assert pairs == 3
    before = {path: path.stat().st_mtime_ns for path in out.rglob("part-*.parquet")}
    assert CliRunner().invoke(app, command).exit_code == 0
    assert before == {path: path.stat().st_mtime_ns for path in out.rglob("part-*.parquet")}


def test_given_labels_are_votes_with_their_place_and_scores(tmp_path: Path) -> None:
    data = write(tmp_path / "d.jsonl", DATA)
    run = prefloop.label(data, {**BY_LENGTH, "filter": EVERY}, tmp_path / "out").directory
    by_id = texts(run)
    found = []
    for vote in rows_of(run.round(0).votes):
        if vote["labeler"] == "given":
            a, b = (by_id[vote[side]]["text"] for side in ("a_id", "b_id"))
            said = {a: vote["score_a"], b: vote["score_b"]}
            better = {"a": a, "b": b}[vote["preference"]]
            found.append((better, said, vote["order"], vote["completion"].rpartition(":")[2]))
    assert sorted(found, key=str) == sorted(
        [
            ("Yes, hello.", {"Yes, hello.": None, "No.": None}, "none", "1"),
            ("Yes, hello.", {"Yes, hello.": None, "Go away, please do.": None}, "none", "2"),
            ("Deep blue.", {"Deep blue.": 5.0, "Red.": 4.0}, "none", "3"),
            ("Deep blue.", {"Deep blue.": 5.0, "Red.": 2.0}, "none", "3"),
        ],
        key=str,
    )


def test_rows_that_contradict_each_other_are_a_tie_of_the_data(tmp_path: Path) -> None:
    rows = [{"prompt": "Hi?", "chosen": a, "rejected": b} for a, b in [("aa", "b"), ("b", "aa")]]
    data = write(tmp_path / "d.jsonl", rows)
    judge = {"labelers": [{"type": "given", "decides": True}, BY_LENGTH], "filter": EVERY}
    run = prefloop.label(data, judge, tmp_path / "out").directory
    [decision] = rows_of(run.round(0).decisions)
    assert (decision["p_chosen"], decision["labelers"]) == (0.75, ["given", "length"])


def test_the_labels_of_the_data_can_decide_alone(tmp_path: Path) -> None:
    data = write(tmp_path / "d.jsonl", DATA)
    judge = {"labelers": [{"type": "given", "decides": True}], "filter": EVERY}
    run = prefloop.label(data, judge, tmp_path / "out").directory
    chosen = sorted(row["chosen"][0]["content"] for row in rows_of(run.round(0).triples))
    assert chosen == ["Deep blue.", "Yes, hello.", "Yes, hello."]


def test_answers_of_different_rows_are_compared_where_asked_for(tmp_path: Path) -> None:
    data = write(tmp_path / "d.jsonl", DATA)
    judge = {**BY_LENGTH, "filter": EVERY}
    for pairs, number in (("rows", 3), ("all", 4)):
        run = prefloop.label(
            data, judge, tmp_path / pairs, overrides={"sample.from.pairs": pairs}
        ).directory
        assert len(rows_of(run.round(0).decisions)) == number


def test_what_was_lost_is_made_again_the_same(tmp_path: Path) -> None:
    data = write(tmp_path / "d.jsonl", DATA)
    judge = {**BY_LENGTH, "filter": EVERY, "block_size": 1}
    run = prefloop.label(data, judge, tmp_path / "out").directory
    whole = {name: rows_of(getattr(run.round(0), name)) for name in ("candidates", "votes")}
    shutil.rmtree(run.given.folder)
    run.given_counts.unlink()
    run.round(0).candidates.remove([1])
    run.round(0).votes.remove([0, 1])
    prefloop.label(data, judge, tmp_path / "out")
    assert whole == {name: rows_of(getattr(run.round(0), name)) for name in whole}
    write(data, [*DATA, DATA[0]])
    with pytest.raises(RunError, match="changed since"):
        prefloop.label(data, judge, tmp_path / "out")


def test_a_table_in_memory_and_a_run_can_be_labelled(tmp_path: Path) -> None:
    frame = pd.DataFrame(DATA[:2])
    first = prefloop.label(frame, {**BY_LENGTH, "filter": EVERY}, tmp_path / "first")
    assert len(rows_of(first.directory.round(0).triples)) == 2
    again = prefloop.label(first, {**BY_LENGTH, "filter": EVERY}, tmp_path / "again")
    assert {row["policy"] for row in texts(again.directory).values()} == {
        "big@given", "small@given", "tiny@given"
    }  # fmt: skip
    prefloop.report(first)  # what is no answer in a run may change
    (first.path / "note.txt").write_text("x")
    assert prefloop.label(first, {**BY_LENGTH, "filter": EVERY}, tmp_path / "again").path


def test_a_labelled_run_can_be_labelled_again(tmp_path: Path) -> None:
    data = write(tmp_path / "d.jsonl", DATA)
    run = prefloop.label(data, {**BY_LENGTH, "filter": EVERY}, tmp_path / "out")
    again = prefloop.relabel(run, {**BY_LENGTH, "name": "again"})
    pairs = [{one["pair_id"] for one in rows_of(RunDir(Path(path)).round(0).decisions)}
             for path in (run.path, again.folder)]  # fmt: skip
    assert pairs[0] == pairs[1]
    assert len(pairs[0]) == 3  # answers of different rows are compared by nobody


def test_single_answers_and_their_labels(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    turns = [{"role": "user", "content": "Hi?"}, {"role": "assistant", "content": "Hello."}]
    rows = [
        {"messages": turns},
        {"prompt": "Hi?", "completion": [{"role": "assistant", "content": "Go!"}], "label": False},
        {"prompt": "Hi?", "completion": "Good day.", "label": True},
        {"prompt": "Hi?", "completion": "Away!", "label": False},
        {"prompt": "Ho?", "chosen": "same", "rejected": "same"},
        {"prompt": "Ha?", "response_a": "x", "response_b": "xy", "label": None},
    ]
    data = write(tmp_path / "d.jsonl", rows)
    run = prefloop.label(data, {**BY_LENGTH, "filter": EVERY}, tmp_path / "out").directory
    # Four answers to the first prompt; of the labels, good against bad alone compares.
    assert len(rows_of(run.round(0).decisions)) == 7
    assert [vote["labeler"] for vote in rows_of(run.round(0).votes)].count("given") == 2
    assert "1 of its rows or lists have one answer only" in caplog.text


def test_a_reference_that_is_one_of_the_answers_is_none(tmp_path: Path) -> None:
    rows = [{"prompt": p, "chosen": "Yes.", "rejected": "Noo.", "reference": r}
            for p, r in (("Hi?", "Yes."), ("Ho?", "Maybe."))]  # fmt: skip
    data = write(tmp_path / "d.jsonl", rows)
    judge = {"labelers": [{"type": "given", "decides": True}], "filter": EVERY}
    run = prefloop.label(data, judge, tmp_path / "out").directory
    assert [row["reference"] for row in rows_of(run.prompts)] == [None, "Maybe."]


def test_labels_that_may_mean_two_things_are_not_guessed(tmp_path: Path) -> None:
    rows = [{"prompt": f"{n}?", "response_a": "a", "response_b": "b", "label": n} for n in (0, 1)]
    data = write(tmp_path / "d.jsonl", rows)
    judge = {"labelers": [{"type": "given", "decides": True}], "filter": EVERY}
    with pytest.raises(prefloop.PrefloopError, match=r"say which with `labels` in sample\.from"):
        prefloop.label(data, judge, tmp_path / "out")
    assert prefloop.label(data, judge, tmp_path / "out", labels="a=0,b=1,tie=2")


def fresh(data: Path, run_dir: Path, **changes: Any) -> dict[str, Any]:
    return {
        "run_dir": str(run_dir),
        "prompts": {"train": {"path": "embedded:prompts", "limit": 6}, "heldout_share": 0},
        "sample": {"from": str(data), "n": 2, "max_tokens": 16},
        "label": {"labelers": [BY_LENGTH, {"type": "given"}]},
        "filter": EVERY,
    } | changes


def test_given_answers_stand_beside_fresh_ones(tmp_path: Path) -> None:
    asked = prefloop.run(fresh(tmp_path, tmp_path / "no", sample={"n": 2, "max_tokens": 16},
                               label={"labelers": [BY_LENGTH]})).directory  # fmt: skip
    [first, second, *_] = rows_of(asked.prompts)
    sampled = rows_of(asked.round(0).candidates)
    same = next(row["text"] for row in sampled if row["prompt_id"] == first["prompt_id"])
    rows = [
        {"prompt": first["messages"], "chosen": same, "rejected": "x", "chosen_model": "big"},
        {"prompt": [{"role": "user", "content": second["messages"][0]["content"] + "\n"}],
         "chosen": "good", "rejected": "bad"},
        {"prompt": "Not asked here.", "chosen": "good", "rejected": "bad"},
    ]  # fmt: skip
    run = prefloop.run(fresh(write(tmp_path / "d.jsonl", rows), tmp_path / "run")).directory
    found = rows_of(run.round(0).candidates)
    assert [row for row in found if row["origin"] == "sampled"] == sampled
    given = {(row["prompt_id"], row["text"]) for row in found if row["origin"] == "given"}
    assert given == {(first["prompt_id"], "x"), (second["prompt_id"], "good"),
                     (second["prompt_id"], "bad")}  # fmt: skip
    # The sampled answer that reads like a given one has its label, and fresh ones meet all.
    votes = rows_of(run.round(0).votes)
    assert sum(vote["labeler"] == "given" for vote in votes) == 2
    of_first = [row for row in found if row["prompt_id"] == first["prompt_id"]]
    pairs = [one for one in rows_of(run.round(0).decisions)
             if one["prompt_id"] == first["prompt_id"]]  # fmt: skip
    assert len(pairs) == len(of_first) * (len(of_first) - 1) // 2
    counts = json.loads(run.given_counts.read_text())
    assert (counts["used"], counts["of_other_prompts"], counts["unreadable"]) == (4, 2, 1)
    assert prefloop.status(run.root).rounds[0].quarantined == {"given": {"broken_json": 1}}


def test_prompts_without_an_answer_are_told_and_none_at_all_is_an_error(tmp_path: Path) -> None:
    prompts = tmp_path / "p.jsonl"
    prompts.write_text("\n".join(json.dumps({"prompt": one}) for one in ("Hi?", "Ho?")))
    changes = {
        "prompts": {"train": {"path": str(prompts)}, "heldout_share": 0},
        "sample": {"from": str(write(tmp_path / "d.jsonl", DATA))},
    }
    run = prefloop.run(fresh(tmp_path, tmp_path / "run", **changes)).directory
    assert prefloop.status(run.root).rounds[0].quarantined["sample"] == {"no_given_answer": 1}
    prompts.write_text(json.dumps({"prompt": "Ho?"}))
    with pytest.raises(prefloop.PrefloopError, match=r"sample\.from has no answer.*give answers"):
        prefloop.run(fresh(tmp_path, tmp_path / "none", **changes))


WRONG = [
    ({"sample": {"n": 0}}, "sample.n is 0"),
    ({"label": {"labelers": [BY_LENGTH, {"type": "given"}]}, "sample": {}}, "set sample.from"),
    ({"label": {"labelers": [{"type": "given"}]}}, "no labeler decides"),
    ({"sample": {"from": "d", "n": 0}, "rounds": 2, "train": {}}, "rounds: 1"),
    ({"train": {"method": "grpo"}}, "leave out sample.from"),
    ({"sample": {"from": {"path": "d", "columns": "a=1"}}}, "b and label missing"),
    ({"sample": {"frm": "d"}}, "did you mean 'from'"),
    ({"prompts": {}, "sample": {"n": 2}}, "prompts.train: Field required"),
]  # fmt: skip


@pytest.mark.parametrize(("changes", "said"), WRONG)
def test_what_cannot_be_set(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        validate_config(fresh(tmp_path, tmp_path, **changes), "test")


def test_a_resolved_config_means_the_same(tmp_path: Path) -> None:
    data = write(tmp_path / "d.jsonl", DATA)
    run = prefloop.label(data, {**BY_LENGTH, "filter": EVERY}, tmp_path / "out")
    settings = prefloop.load_config(run.path / "config.yaml")
    assert prefloop.load_config(settings.model_dump(mode="json")) == settings
    assert prefloop.run(run.path / "config.yaml").path == run.path


def test_nothing_is_said_to_judges_of_labels_and_writers(tmp_path: Path) -> None:
    rows = [{"prompt": "Hi?", "chosen": "Yes.", "rejected": "No.", "chosen_model": "wri_ter",
             "rejected_model": "oth_er", "chosen_score": 0.98765, "rejected_score": 0.12345,
             "rationale": "gold_says"}]  # fmt: skip

    def verdict(handler: Handler) -> None:
        choice = {"message": {"content": "A"}, "finish_reason": "stop", "logprobs": None}
        usage = {"prompt_tokens": 1, "completion_tokens": 1}
        handler.send(200, json.dumps({"choices": [choice], "usage": usage}))

    with faulty_server(verdict) as server:
        judge = {
            "labelers": [{"type": "judge", "judge": "pairwise", "model": "m", "engine": "api"}],
            "engines": {"api": {"type": "openai", "base_url": server.url, "max_retries": 0}},
            "filter": EVERY,
        }
        with pytest.raises(prefloop.PrefloopError, match="tie"):  # both orders say A
            prefloop.label(write(tmp_path / "d.jsonl", rows), judge, tmp_path / "out")
    sent = json.dumps([body for _, _, body in server.requests])
    assert "Yes." in sent
    for gold in ("wri_ter", "oth_er", "0.98765", "0.12345", "gold_says", "chosen", "rejected"):
        assert gold not in sent


def test_a_plan_counts_what_is_asked(tmp_path: Path) -> None:
    data = write(tmp_path / "d.jsonl", DATA)
    judge = {"type": "judge", "judge": "pairwise_short", "model": "embedded:judge"}
    config = {"sample": {"from": str(data)}, "label": {"labelers": [judge, BY_LENGTH]},
              "filter": EVERY,
              "prompts": {"heldout_share": 0}, "run_dir": str(tmp_path / "run")}  # fmt: skip
    planned = prefloop.plan(config)
    run = prefloop.run(config).directory
    asked = sum(step.requests for step in planned.steps if step.engine)
    assert asked == sum(vote["labeler"] == "judge" for vote in rows_of(run.round(0).votes)) == 6
    assert {step.stage for step in planned.steps} == {"label"}


def test_files_of_judges(tmp_path: Path) -> None:
    data = write(tmp_path / "d.jsonl", DATA)
    whole = {
        "prompts": {"train": {"path": "nowhere"}, "max_chars": 10},
        "sample": {"n": 4, "system_prompt": "Be brief."},
        "policy": "some/model",
        "rounds": 3,
        "train": {},
        "label": {"labelers": [BY_LENGTH]},
        "filter": EVERY,
    }
    run = prefloop.label(data, whole, tmp_path / "whole")
    settings = prefloop.load_config(run.path / "config.yaml")
    assert (settings.train, settings.rounds, settings.sample.n) == (None, 1, 0)
    assert settings.sample.system_prompt == "Be brief."
    assert prefloop.status(run).prompts.quarantined_by_reason["too_long"] == 1
    for wrong, said in [
        ({"model": "m"}, "holds no labeler"),
        ({"labelers": [{**BY_LENGTH, "name": "given"}]}, "give it another name"),
        ({**BY_LENGTH, "engine": {}}, "unknown key"),
        ({"label": 3}, "must be a mapping"),
    ]:
        with pytest.raises(ConfigError, match=said):
            prefloop.label(data, wrong, tmp_path / "wrong")
    assert not (tmp_path / "wrong").exists()
    with pytest.raises(ConfigError, match="no such file"):
        prefloop.label(data, tmp_path / "none.yaml", tmp_path / "wrong")


def test_tools_that_could_be_called_are_the_prompts(tmp_path: Path) -> None:
    weather = {"type": "function", "function": {"name": "weather", "parameters": {}}}
    calendar = {"type": "function", "function": {"name": "calendar", "parameters": {}}}
    answers = {"chosen": "A longer answer.", "rejected": "Short."}
    rows: list[Row] = [
        {"prompt": "Rain?", **answers, "tools": [weather]},
        {"prompt": "Rain?", **answers, "rejected": "No.", "tools": json.dumps([weather])},
        {"prompt": "Rain?", **answers, "tools": [calendar]},
        {"prompt": "Nail?", **answers, "tools": "a hammer"},
        {"prompt": "Nothing?", **answers, "tools": []},
    ]
    out = tmp_path / "out"
    prefloop.label(write(tmp_path / "d.jsonl", rows), judge_file(tmp_path), out)
    prompts = {row["messages"][0]["content"]: row for row in rows_of(RunDir(out).prompts)}
    assert json.loads(prompts["Rain?"]["tools"]) == [weather]
    assert "weather" not in prompts["Rain?"]["metadata"]
    assert prompts["Nail?"]["tools"] is prompts["Nothing?"]["tools"] is None
    assert json.loads(prompts["Nail?"]["metadata"])["tools"] == "a hammer"
    status = prefloop.status(out)
    assert status.prompts.quarantined_by_reason == {"broken_json": 1, "other_tools": 1}
    assert {json.loads(row["tools"] or "null") is None
            for row in rows_of(RunDir(out).round(0).triples)} == {True, False}  # fmt: skip
