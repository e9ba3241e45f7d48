"""Label Studio as the place where people answer: tasks out, its exports in. The server itself is in
``test_label_studio_server.py``."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from xml.etree import ElementTree

import pyarrow as pa
import pytest
from typer.testing import CliRunner

from prefloop.pipeline import redecide as redeciding
from prefloop.pipeline.commands.app import app
from prefloop.pipeline.review.drawing import Drawing
from prefloop.pipeline.review.errors import ReviewError
from prefloop.pipeline.review.folder import Review, ReviewFolder
from prefloop.pipeline.review.label_studio import tasks as tasks_module
from prefloop.pipeline.review.label_studio.importing import import_answers
from prefloop.pipeline.review.label_studio.tasks import ExportedTasks, export_tasks
from prefloop.pipeline.review.pull import pull
from prefloop.pipeline.review.review_status import review_status
from prefloop.pipeline.review.review_text import render_imported_answers, render_review_status
from prefloop.pipeline.review.subjects import RunSubjects
from prefloop.pipeline.run.run_dir import RunDir
from tests.helpers.runs import dataset_rows
from tests.helpers.synthetic_run import JUDGE
from tests.pipeline.review.decided_run import decided_run

Json = dict[str, Any]
OTHER = {"a": "b", "b": "a", "tie": "tie", "both_bad": "both_bad"}


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunDir:
    monkeypatch.setattr(redeciding, "write_report", lambda run: None)
    return decided_run(tmp_path / "run")


def exported(run: RunDir, name: str = "label-studio", **drawing: Any) -> ExportedTasks:
    return export_tasks(
        RunSubjects(run), review_of(run, name), Drawing(**{"n": 500, **drawing}),
        overlap=2, source=str(run.root), is_run=True,
    )  # fmt: skip


def review_of(run: RunDir, name: str = "label-studio") -> ReviewFolder:
    return ReviewFolder(run.root / "review" / name)


def tasks_in(found: ExportedTasks) -> list[Json]:
    return [task for path in found.files for task in json.loads(path.read_text(encoding="utf-8"))]


def annotation(number: int, choice: str | None, by: Any = 1, **more: Any) -> Json:
    """As Label Studio 1.23 exports it."""
    result = []
    if choice:
        value: Json = {"choices": [choice]}
        about = {"to_name": "prompt", "origin": "manual"}
        result = [
            {"id": "q1", "type": "choices", "from_name": "verdict", "value": value, **about},
            {"id": "q2", "type": "textarea", "from_name": "reason",
             "value": {"text": [f"because {choice}"]}, **about},
        ]  # fmt: skip
    return {
        "id": number, "completed_by": by, "result": result, "was_cancelled": False,
        "ground_truth": False, "created_at": "2026-11-26T07:00:00.100000Z",
        "updated_at": "2026-11-26T07:00:00.200000Z", "draft_created_at": None, "lead_time": 3.5,
        "prediction": {}, "result_count": len(result), "unique_id": f"u-{number}",
        "parent_prediction": None, "parent_annotation": None, "last_created_by": None, **more,
    }  # fmt: skip


def as_json(tasks: list[Json], answers: Callable[[int, Json], list[Json]]) -> list[Json]:
    """The export of a project in which each task was answered as ``answers`` says."""
    return [
        {"id": number, "data": dict(task["data"]), "meta": {}, "annotations": answers(number, task),
         "predictions": [{"result": [], "model_version": "m"}], "drafts": [], "project": 1}
        for number, task in enumerate(tasks, start=1)
    ]  # fmt: skip


def as_json_min(whole: list[Json]) -> list[Json]:
    """The same export in the other form: skipped annotations are not in it."""
    rows = []
    for task in whole:
        if not task["annotations"]:
            empty = dict.fromkeys(("annotation_id", "created_at", "updated_at", "lead_time"))
            rows.append({**task["data"], "id": task["id"], "annotator": None, **empty})
        for one in task["annotations"]:
            if one["was_cancelled"]:
                continue
            said = {region["from_name"]: region["value"] for region in one["result"]}
            found = {
                name: next(iter(value.values()))[0] if len(next(iter(value.values()))) == 1
                else [value]
                for name, value in said.items()
            }  # fmt: skip
            by = one["completed_by"]
            rows.append(
                {**task["data"], "id": task["id"], **found, "annotation_id": one["id"],
                 "annotator": by["email"] if isinstance(by, dict) else by,
                 "created_at": one["created_at"], "updated_at": one["updated_at"],
                 "lead_time": 3.5}
            )  # fmt: skip
    return rows


def written(path: Path, content: Any) -> Path:
    path.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
    return path


def people_votes(run: RunDir) -> list[Json]:
    rows = run.round(0).votes.table().to_pylist()
    return [row for row in rows if row["labeler"].startswith("human:")]


def the_chosen(review: ReviewFolder, task: Json) -> str:
    """The letter under which the answer is shown that the jury prefers."""
    row = review.pairs()[task["data"]["pair_id"]]
    return "a" if row["answer_a_id"] == row["chosen_id"] else "b"


def test_tasks_tell_nothing_and_their_sides_are_drawn(run: RunDir) -> None:
    found = exported(run)
    tasks, review = tasks_in(found), review_of(run)
    assert len(tasks) == found.pairs == len(review.pairs()) == 16
    for task in tasks:
        assert task.keys() == {"data"}
        assert task["data"].keys() == {"prompt", "answer_a", "answer_b", "pair_id", "review"}
    assert {the_chosen(review, task) for task in tasks} == {"a", "b"}
    texts = {
        row["candidate_id"]: row["text"] for row in run.round(0).candidates.table().to_pylist()
    }
    for task in tasks:  # what stands as A here is what is noted as A
        row = review.pairs()[task["data"]["pair_id"]]
        for side in ("a", "b"):
            assert task["data"][f"answer_{side}"] == texts[row[f"answer_{side}_id"]]
    said = "".join(path.read_text(encoding="utf-8") for path in (*found.files, found.instructions))
    for secret in (JUDGE, "“judge”", "“verifier”", "policy", "abc0", "chosen", "p_chosen"):
        assert secret not in said
    order = [task["data"]["pair_id"] for task in tasks]
    assert order != sorted(order, key=lambda pair: -review.pairs()[pair]["p_chosen"])


def test_the_interface_asks_our_question(run: RunDir) -> None:
    root = ElementTree.fromstring(exported(run).interface.read_text(encoding="utf-8"))
    shown = {node.get("name"): node.get("value") for node in root.iter("Text")}
    assert shown == {"prompt": "$prompt", "answer_a": "$answer_a", "answer_b": "$answer_b"}
    [question] = root.iter("Choices")
    assert (question.get("name"), question.get("choice")) == ("verdict", "single-radio")
    assert [one.get("alias") for one in question] == ["a", "b", "tie", "both_bad"]
    assert not [*root.iter("HyperText")]  # which would be taken for a page


def test_each_pair_is_in_one_file(run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    first = exported(run, n=5, strategy="random")
    assert exported(run, n=5, strategy="random").new == ()

    def killed(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(tasks_module, "create_file", killed)
        with pytest.raises(KeyboardInterrupt):
            exported(run, n=5, strategy="random", seed=1)
    assert len(review_of(run).pairs()) > 5 == len(tasks_in(first))
    again = exported(run, n=5, strategy="random", seed=1)
    pairs = [task["data"]["pair_id"] for task in tasks_in(again)]
    assert [path.name for path in again.new] == ["tasks-001.json"]
    assert sorted(pairs) == sorted(review_of(run).pairs())  # each once
    assert len(review_of(run).draws()) == 2


def test_a_draw_stays_as_it_is_whatever_people_say_and_however_many_pairs_come(
    run: RunDir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Their votes change how sure the jury is, by which pairs are drawn."""
    first, review = exported(run, n=8), review_of(run)
    before = RunSubjects(run).population()

    def killed(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:  # noted, and in no file yet
        patched.setattr(tasks_module, "create_file", killed)
        with pytest.raises(KeyboardInterrupt):
            exported(run, n=8, seed=1)
    drawn = set(review.pairs())

    def answers(number: int, task: Json) -> list[Json]:
        return [annotation(number, "tie" if number % 2 else OTHER[the_chosen(review, task)])]

    file = written(tmp_path / "export.json", as_json(tasks_in(first), answers))
    assert import_answers(review, [file]).rounds
    assert RunSubjects(run).population().pair_ids != before.pair_ids, "ties are not kept"
    again = exported(run, n=8)
    assert [path.name for path in again.new] == ["tasks-001.json"]
    assert {task["data"]["pair_id"] for task in tasks_in(again)} == drawn == set(review.pairs())
    assert exported(run, n=8, seed=1).new == ()
    assert len(review.draws()) == 2
    for draw in review.draws():
        assert sum(draw["chance"].to_pylist()) == pytest.approx(8)
        assert len(draw) - draw["place"].null_count == 8
        assert draw["pair_id"].to_pylist() == before.pair_ids

    caplog.clear()
    decisions = run.round(0).decisions
    where = decisions.indices()[-1]
    more = [row | {"pair_id": f"new-{row['pair_id']}"} for row in decisions.read(where).to_pylist()]
    decisions.replace(where, pa.Table.from_pylist(more, decisions.schema))
    assert exported(run, n=8).new == ()
    assert "another --seed draws from all" in caplog.text


def test_a_draw_of_an_earlier_version_is_found_by_drawing_again(run: RunDir) -> None:
    exported(run, n=8)
    review = review_of(run)
    name = "mixed-8-0"
    draw = review.draw(name)
    assert draw is not None
    places = draw["place"].to_pylist()
    review.add_draw(name, draw.set_column(3, "place", pa.nulls(len(draw), pa.int32())))
    assert exported(run, n=8).new == ()
    assert review.draw(name)["place"].to_pylist() == places
    other = draw.set_column(2, "p_chosen", pa.array([0.5] * len(draw)))
    other = other.set_column(3, "place", pa.nulls(len(draw), pa.int32()))
    review.add_draw(name, other)  # the jury was as sure of all then: nobody knows what it drew
    assert exported(run, n=8).new == ()
    assert review.draw(name)["place"].null_count == len(draw)


def test_a_pair_of_two_rounds_is_shown_once(tmp_path: Path) -> None:
    """Where a policy was kept, the next round may sample the same answers."""
    run = decided_run(tmp_path / "run")
    shutil.copytree(run.round(0).root, run.round(1).root)
    once, found = decided_run(tmp_path / "once"), exported(run)
    assert len(run.rounds()) == 2
    pairs = [task["data"]["pair_id"] for task in tasks_in(found)]
    assert len(pairs) == len(set(pairs)) == len(tasks_in(exported(once)))
    assert {row["round"] for row in review_of(run).pairs().values()} == {0}


@pytest.mark.parametrize("form", [lambda whole: whole, as_json_min])
def test_answers_become_the_votes_that_argilla_would_give(
    run: RunDir, tmp_path: Path, form: Callable[[list[Json]], list[Json]]
) -> None:
    """Two people; one is against every decision, the other says tie on every third."""
    tasks, review = tasks_in(exported(run)), review_of(run)
    verdicts = {
        task["data"]["pair_id"]: (
            OTHER[the_chosen(review, task)],
            "tie" if number % 3 else the_chosen(review, task),
        )
        for number, task in enumerate(tasks, start=1)
    }

    def answers(number: int, task: Json) -> list[Json]:
        ann, bob = verdicts[task["data"]["pair_id"]]
        return [annotation(2 * number, ann, by=7), annotation(2 * number + 1, bob, by=8)]

    file = written(tmp_path / "export.json", form(as_json(tasks, answers)))
    before = dataset_rows(run)
    found = import_answers(review, [file], names={"7": "ann"})
    assert found.people == {"ann": len(tasks), "rater-8": len(tasks)}
    assert found.left_out == {}
    assert found.rounds
    assert dataset_rows(run) != before
    assert import_answers(review, [file]).rounds == ()  # the name is kept, and nothing is new
    assert import_answers(review, [file]).new == 0

    other = decided_run(tmp_path / "argilla")
    there = ReviewFolder(other.root / "review" / "r")
    there.write(Review("r", "w", "http://x", "d", "blind", 2, str(other.root), is_run=True))
    there.pushed.write(0, review.pushed.table())
    assert pull(argilla_with(verdicts), there).rounds
    told = ("pair_id", "labeler", "order", "preference", "a_id", "b_id", "rationale", "p_a")

    def key(row: Json) -> tuple[Any, ...]:
        return tuple(row[name] for name in told)

    mine = sorted(map(key, people_votes(run)))
    assert len(mine) == 2 * len(tasks)
    assert mine == sorted(map(key, people_votes(other)))
    assert dataset_rows(run) == dataset_rows(other)
    ours, theirs = review_status(review), review_status(there)
    assert ours.kappas == theirs.kappas
    assert (ours.labelers, ours.complete) == (theirs.labelers, len(tasks))
    assert "label-studio (blind" in render_review_status(ours)


def argilla_with(verdicts: dict[str, tuple[str, str]]) -> Any:
    """A server on which both people said the same."""

    def response(pair: str, user: str, verdict: str) -> Json:
        values = {"verdict": {"value": verdict}, "reason": {"value": f"because {verdict}"}}
        return {"id": f"{user}-{pair}", "user_id": user, "status": "submitted", "values": values,
                "inserted_at": "t", "updated_at": "t"}  # fmt: skip

    records = [
        {"external_id": pair,
         "responses": [response(pair, "u1", ann), response(pair, "u2", bob)]}
        for pair, (ann, bob) in verdicts.items()
    ]  # fmt: skip
    return SimpleNamespace(
        account=SimpleNamespace(url="http://x"),
        request=lambda *_, **__: {},
        users=lambda: {"u1": "ann", "u2": "rater-8"},
        records=lambda _: records,
    )


def test_what_is_said_elsewhere_about_the_same_pairs_stands(run: RunDir, tmp_path: Path) -> None:
    tasks, review = tasks_in(exported(run, n=5, strategy="random")), review_of(run)
    there = ReviewFolder(run.root / "review" / "blind")
    there.write(Review("r", "w", "http://x", "d", "blind", 1, str(run.root), is_run=True))
    there.pushed.write(0, review.pushed.table())
    server = argilla_with({task["data"]["pair_id"]: ("a", "b") for task in tasks})
    pull(server, there)
    file = written(
        tmp_path / "e.json", as_json(tasks, lambda number, _: [annotation(number, "tie", by=3)])
    )
    import_answers(review, [file])
    names = [row["labeler"] for row in people_votes(run)]
    assert {name: names.count(name) for name in names} == {
        "human:ann": 5, "human:rater-8": 5, "human:rater-3": 5,
    }  # fmt: skip
    assert pull(server, there).rounds == ()
    assert import_answers(review, [file]).rounds == ()
    assert len(people_votes(run)) == 15


@pytest.mark.parametrize(
    ("change", "reason", "field"),
    [
        (lambda one: one["data"].update(pair_id="f" * 32), "foreign_task", "pair_id"),
        (lambda one: one["data"].update(pair_id=["x"]), "foreign_task", "pair_id"),
        (lambda one: one["data"].update(review="of another"), "foreign_task", "pair_id"),
        (lambda one: one["data"].update(answer_a="Nicer."), "changed_task", None),
        (lambda one: one["data"].pop("prompt"), "changed_task", None),
        (
            lambda one: one["data"].update(
                answer_a=one["data"]["answer_b"], answer_b=one["data"]["answer_a"]
            ),
            "changed_task",
            None,
        ),
        (lambda one: one.update(data=3), "unreadable", None),
        (lambda one: one.update(annotations={}), "unreadable", None),
        (lambda one: one.update(annotations=["x"]), "unreadable", "annotations"),
        (lambda one: one["annotations"][0].pop("id"), "unreadable", "id"),
        (lambda one: one["annotations"][0].update(completed_by=True), "unreadable", "completed_by"),
        (
            lambda one: one["annotations"][0].update(completed_by="../../x"),
            "unreadable",
            "completed_by",
        ),
        (
            lambda one: one["annotations"][0]["result"][0]["value"].update(choices=["Left"]),
            "unknown_choice",
            "verdict",
        ),
        (
            lambda one: one["annotations"][0]["result"][0]["value"].update(choices=["a", "tie"]),
            "several_choices",
            "verdict",
        ),
    ],
)
def test_what_is_not_ours_is_kept_apart_with_its_reason(
    run: RunDir, tmp_path: Path, change: Callable[[Json], Any], reason: str, field: str | None
) -> None:
    tasks, review = tasks_in(exported(run, n=3, strategy="random")), review_of(run)
    whole = as_json(tasks, lambda number, _: [annotation(number, "a")])
    change(whole[1])
    found = import_answers(review, [written(tmp_path / "e.json", whole)])
    assert found.left_out == {reason: 1}
    import pyarrow.parquet as pq

    [row] = pq.read_table(review.left_out).to_pylist()
    assert (row["reason"], row["field"], row["row"]) == (reason, field, 2)
    assert json.loads(row["content"]) == whole[1]
    wanted = {whole[0]["data"]["pair_id"], whole[2]["data"]["pair_id"]}
    assert {vote["pair_id"] for vote in people_votes(run)} == wanted
    assert f"left out: 1 times {reason}" in render_imported_answers(found)
    whole = as_json(tasks, lambda number, _: [annotation(number, "a")])
    import_answers(review, [written(tmp_path / "e.json", whole)])
    assert not review.left_out.exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\xff\xfe", "is no UTF-8 text"),
        (b"id,verdict\n1,a\n", "is no JSON"),
        (b'{"id": 1}', "is no list of tasks: export the project as JSON or JSON-MIN"),
        (b"[]", "no task of the review label-studio is in it"),
        (b'[{"id": 1}]', "row 1: unreadable: has no data and annotations"),
        (None, "cannot be read: No such file"),
    ],
)
def test_files_that_are_no_exports_change_nothing(
    run: RunDir, tmp_path: Path, content: bytes | None, message: str
) -> None:
    tasks, review = tasks_in(exported(run, n=3, strategy="random")), review_of(run)
    good = written(
        tmp_path / "good.json", as_json(tasks, lambda number, _: [annotation(number, "a")])
    )
    import_answers(review, [good])
    before, votes = review.responses(), people_votes(run)
    bad = tmp_path / "bad.json"
    if content is not None:
        bad.write_bytes(content)
    with pytest.raises(ReviewError, match=message):
        import_answers(review, [bad])
    assert review.responses().equals(before)
    assert people_votes(run) == votes


def test_skipped_changed_and_later_annotations(run: RunDir, tmp_path: Path) -> None:
    tasks, review = tasks_in(exported(run, n=5, strategy="random")), review_of(run)

    def answers(number: int, _: Json) -> list[Json]:
        later = "2026-11-26T09:00:00+00:00"
        return {
            1: [annotation(1, "a", was_cancelled=True)],
            2: [annotation(2, "a"), annotation(9, "b", updated_at=later)],  # of one person
            3: [annotation(3, None)],
            4: [annotation(4, "A is better", by={"id": 5, "email": "ann@example.org"})],
            5: [annotation(5, "both_bad", by=None, parent_prediction=3)],
        }[number]

    file = written(tmp_path / "e.json", as_json(tasks, answers))
    found = import_answers(review, [file], names={"ann@example.org": "ann"})
    assert found.statuses == {"discarded": 1, "submitted": 4, "replaced": 1}
    assert (found.unreadable, found.removed_people, found.began) == (1, 1, 1)
    pairs = [task["data"]["pair_id"] for task in tasks]
    said = {row["pair_id"]: (row["labeler"], json.loads(row["completion"])["verdict"])
            for row in people_votes(run)}  # fmt: skip
    assert said == {
        pairs[1]: ("human:rater-1", "b"), pairs[3]: ("human:ann", "a"),
        pairs[4]: ("human:removed-5", "both_bad"),
    }  # fmt: skip
    text = render_imported_answers(found)
    assert "1 responses were replaced by a later one" in text
    assert "1 responses began as copies of predictions" in text

    # An older file does not undo what is known, and a part of the project takes nothing away.
    old = as_json(tasks, lambda number, _: [
        annotation(9, "a", updated_at="2026-11-26T08:00:00Z")] if number == 2 else [])  # fmt: skip
    part = written(tmp_path / "old.json", old)
    again = import_answers(review, [part])
    assert (again.older, again.new, again.unseen) == (1, 0, 5)
    assert again.statuses == found.statuses
    assert again.rounds == ()
    # In JSON-MIN skipped ones are not there, and it cannot tell who removed their answer.
    short = written(tmp_path / "min.json", as_json_min(as_json(tasks, answers)))
    assert import_answers(review, [short]).statuses == found.statuses
    whole = import_answers(review, [part], whole=True)
    assert whole.statuses == {"gone": 5, "submitted": 1}
    assert [row["pair_id"] for row in people_votes(run)] == [pairs[1]]
    assert len(import_answers(review, [file]).people) == 3  # and it all comes back


def test_from_the_command_line(run: RunDir, tmp_path: Path) -> None:
    made = CliRunner().invoke(app, ["review", "export", str(run.root), "--n", "4"])
    assert made.exit_code == 0, made.output
    [path] = (review_of(run).tasks).glob("tasks-*.json")
    tasks = json.loads(path.read_text(encoding="utf-8"))
    file = written(
        tmp_path / "e.json", as_json(tasks, lambda number, _: [annotation(number, "a", by=4)])
    )
    arguments = ["review", "import", str(run.root), str(file), "--rater", "4=ann", "--json"]
    done = CliRunner().invoke(app, arguments)
    assert json.loads(done.stdout)["people"] == {"ann": 4}
    status = CliRunner().invoke(app, ["review", "status", str(run.root)])
    assert "  ann: 4 submitted" in status.stdout
    wrong = CliRunner().invoke(app, ["review", "pull", str(run.root)])
    assert "begin one (`prefloop review push`)" in str(wrong.exception)
    named = CliRunner().invoke(app, ["review", "pull", str(run.root), "--name", "label-studio"])
    assert isinstance(named.exception, ReviewError)
    bad = CliRunner().invoke(app, [*arguments[:4], "--rater", "ann"])
    assert "write WHO=NAME" in bad.output


def test_a_dataset_of_somebody_else(tmp_path: Path) -> None:
    rows = [{"prompt": f"q{i}", "chosen": f"good {i}", "rejected": f"bad {i}"} for i in range(12)]
    file = tmp_path / "theirs.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)))
    out = tmp_path / "review"
    arguments = ["review", "export", "--dataset", str(file), "--out", str(out), "--n", "8"]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, done.output
    review = ReviewFolder(out)
    [path] = review.tasks.glob("tasks-*.json")
    tasks = json.loads(path.read_text(encoding="utf-8"))
    whole = as_json(tasks, lambda number, task: [annotation(number, the_chosen(review, task))])
    import_answers(review, [written(tmp_path / "e.json", whole)])
    found = review_status(review)
    assert found.decision is not None
    assert (found.decision.value, found.decision.n) == (1.0, 8)
    assert (out / "votes.parquet").exists()
