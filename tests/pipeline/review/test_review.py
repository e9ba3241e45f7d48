"""People in the loop, end to end against the real server: push, answers, pull, status."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest
from typer.testing import CliRunner

from prefloop.pipeline.commands.app import app
from prefloop.pipeline.config import RunConfig
from prefloop.pipeline.judging.agreement_report import run_agreement
from prefloop.pipeline.review.account import Account
from prefloop.pipeline.review.argilla_api import ArgillaApi
from prefloop.pipeline.review.errors import ReviewError
from prefloop.pipeline.review.folder import ReviewFolder
from prefloop.pipeline.review.guidelines import judge_rubric
from prefloop.pipeline.review.pull import pull
from prefloop.pipeline.review.push import PushOptions, push
from prefloop.pipeline.review.review_status import review_status
from prefloop.pipeline.review.review_text import render_pulled, render_review_status
from prefloop.pipeline.review.subjects import DatasetSubjects, RunSubjects
from prefloop.pipeline.review.users import add_person
from prefloop.pipeline.run.run_dir import RunDir, RunError
from tests.helpers.argilla_server import Server
from tests.helpers.runs import JUDGE, dataset_rows, run_small, small_config


def config(**label: Any) -> RunConfig:
    """One judge; every decided pair is kept, so that the dataset shows each change."""
    return small_config(
        prompts={"train": {"path": "embedded:prompts", "limit": 70},
                 "heldout": {"path": "embedded:heldout", "limit": 2}},
        sample={"n": 4, "max_tokens": 40},
        label={"labelers": [JUDGE], **label},
        filter={"filters": [], "strategy": {"type": "all", "min_margin": -1}},
    )  # fmt: skip


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with more than 200 kept pairs, to be copied."""
    return run_small(tmp_path_factory.mktemp("review") / "run", config()).root


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> RunDir:
    import shutil

    shutil.copytree(finished, tmp_path / "run")
    return RunDir(tmp_path / "run")


@pytest.fixture(scope="module")
def people(argilla: Server, tmp_path_factory: pytest.TempPathFactory) -> dict:
    """Two annotators, signed in."""
    folder, found = tmp_path_factory.mktemp("people"), {}
    for name in ("ann", "bob"):
        path = add_person(argilla.api, name, "prefloop", folder / f"{name}.json")
        found[name] = argilla.sign_in(name, json.loads(path.read_text())["password"])
    return found


def start(argilla: Server, run: RunDir, name: str, **options: Any) -> tuple[ReviewFolder, str]:
    folder = ReviewFolder(run.root / "review" / name)
    review = push(
        argilla.api, RunSubjects(run), folder,
        PushOptions(name=f"{run.root.parent.name}-{name}", **options),
        source=str(run.root), is_run=True,
    )  # fmt: skip
    return folder, review.dataset_id


def answer(
    client: httpx.Client, record_id: str, verdict: str | None, status: str = "submitted"
) -> None:
    values = {"verdict": {"value": verdict}} if verdict else {}
    if verdict and status == "submitted":
        values["reason"] = {"value": f"because {verdict}"}
    sent = client.post(
        f"/records/{record_id}/responses", json={"status": status, "values": values or None}
    )
    assert sent.status_code == 201, sent.text


def the_chosen(pushed: dict[str, Any]) -> str:
    """The letter under which the chosen answer is shown."""
    return "a" if pushed["answer_a_id"] == pushed["chosen_id"] else "b"


OTHER = {"a": "b", "b": "a"}


def test_the_whole_way(argilla: Server, people: dict, run: RunDir) -> None:
    """200 pairs, a push killed in the middle, two people who disagree in a known way."""
    home = argilla.home.root
    (home / "venv").exists() or (home / "venv").symlink_to(argilla.home.venv)
    start_up = "from prefloop.pipeline.commands.app import main; main()"
    arguments = ["review", "push", str(run.root), "--n", "200", "--strategy", "random",
                 "--home", str(home)]  # fmt: skip
    wrapper = (
        "import os, time, prefloop.pipeline.review.push as p; p._BATCH_BYTES = 20_000; "
        "from prefloop.pipeline.review.argilla_api import ArgillaApi as A; send = A.upsert; "
        "A.upsert = lambda *a: (send(*a), print('sent', flush=True), time.sleep(0.2)); "
        "from prefloop.pipeline.commands.app import main; main()"
    )
    first = subprocess.Popen(
        [sys.executable, "-c", wrapper, *arguments], stdout=subprocess.PIPE, text=True
    )
    assert first.stdout is not None
    for _ in range(2):
        assert first.stdout.readline() == "sent\n"
    first.send_signal(signal.SIGKILL)
    first.wait()
    folder = ReviewFolder(run.root / "review" / "blind")
    dataset = folder.read().dataset_id
    api = argilla.api
    half = [one["external_id"] for one in api.records(dataset)]
    assert 0 < len(half) < 200
    subprocess.run([sys.executable, "-c", start_up, *arguments], check=True, capture_output=True)
    records = {one["external_id"]: one["id"] for one in api.records(dataset)}
    assert len(records) == len(list(api.records(dataset))) == 200
    assert set(half) <= set(records)
    pushed = folder.pairs()
    assert set(pushed) == set(records)
    # Which answer stands as A is drawn, and says nothing about the decision.
    assert 70 < sum(the_chosen(row) == "a" for row in pushed.values()) < 130

    # Ann agrees with the jury but on every tenth pair; Bob says what Ann says but on every fifth,
    # where he says tie. On every fiftieth Ann finds both bad.
    ids = sorted(pushed)
    overruled = set(ids[::10]) - set(ids[::50])
    both_bad = set(ids[::50])
    bob_ties = set(ids[::5])
    said: dict[str, dict[str, str]] = {"ann": {}, "bob": {}}
    for pair in ids:
        chosen = the_chosen(pushed[pair])
        of_ann = "both_bad" if pair in both_bad else OTHER[chosen] if pair in overruled else chosen
        of_bob = "tie" if pair in bob_ties else of_ann
        said["ann"][pair], said["bob"][pair] = of_ann, of_bob
    for pair in ids[:120]:
        answer(people["ann"], records[pair], said["ann"][pair])
    before = dataset_rows(run)
    decisions = {row["pair_id"]: row for row in run.round(0).decisions.table().to_pylist()}

    # While people are at work: what is there comes back, and is not counted twice.
    done = CliRunner().invoke(app, ["review", "pull", str(run.root), "--home", str(home), "--json"])
    assert json.loads(done.stdout)["people"] == {"ann": 120}
    for pair in ids[120:]:
        answer(people["ann"], records[pair], said["ann"][pair])
    for pair in ids[:-2]:
        answer(people["bob"], records[pair], said["bob"][pair])
    answer(people["bob"], records[ids[-2]], "a", status="draft")
    answer(people["bob"], records[ids[-1]], None, status="discarded")
    found = pull(api, folder)
    assert found.statuses == {"submitted": 398, "draft": 1, "discarded": 1}
    assert found.people == {"ann": 200, "bob": 198}
    again = pull(api, folder)
    assert (again.new, again.rounds) == (0, ())
    assert {**again.statuses} == found.statuses

    # Every response is a vote about the pair's own a and b, whatever was shown as A.
    votes = [
        row for row in run.round(0).votes.table().to_pylist()
        if row["labeler"].startswith("human:")
    ]  # fmt: skip
    assert len(votes) == 398
    for vote in votes:
        pair, name = vote["pair_id"], vote["labeler"].removeprefix("human:")
        verdict = said[name][pair]
        liked = {"a": pushed[pair]["answer_a_id"], "b": pushed[pair]["answer_b_id"]}.get(verdict)
        expected = {vote["a_id"]: "a", vote["b_id"]: "b"}.get(liked, "tie")
        assert vote["preference"] == expected
        assert (vote["order"] == "ab") == (pushed[pair]["answer_a_id"] == vote["a_id"])
        assert vote["rationale"] == f"because {verdict}"
        assert json.loads(vote["completion"])["verdict"] == verdict

    # The dataset changed exactly where people overruled the judge. Where Bob says tie, one against
    # one, the majority prefers nobody.
    now = {row["pair_id"]: row for row in run.round(0).decisions.table().to_pylist()}
    for pair, old in decisions.items():
        new = now[pair]
        if pair not in pushed:
            same = ("chosen_id", "rejected_id", "p_chosen", "kept")
            assert all(new[key] == old[key] for key in same)
        elif pair in bob_ties and pair not in ids[-2:]:
            assert (new["kept"], new["reason"]) == (False, "tie")
        elif pair in overruled:
            assert new["chosen_id"] == old["rejected_id"]
        else:
            assert new["chosen_id"] == old["chosen_id"]
            assert new["kept"]

    def triples(rows: dict[str, list[dict]]) -> set[tuple[str, str]]:
        return {(row["chosen_id"], row["rejected_id"]) for part in rows.values() for row in part}

    after = dataset_rows(run)
    assert triples(after) == {
        (row["chosen_id"], row["rejected_id"]) for row in now.values() if row["kept"]
    }
    assert triples(before) - triples(after) == {
        (old["chosen_id"], old["rejected_id"])
        for pair, old in decisions.items()
        if old["kept"] and (pair in overruled or pair in bob_ties) and not (
            now[pair]["kept"] and now[pair]["chosen_id"] == old["chosen_id"]
        )
    }  # fmt: skip
    assert sum(each.removed for each in found.rounds) > 0

    # Kappa by hand from the 198 pairs that both labelled.
    views = [(said["ann"][pair], said["bob"][pair]) for pair in ids[:-2]]
    merged = [tuple("tie" if one == "both_bad" else one for one in pair) for pair in views]
    merged += [tuple(OTHER.get(one, one) for one in pair) for pair in merged]  # both ways round
    observed = sum(one == other for one, other in merged) / len(merged)
    chance = sum(
        sum(one == label for one, _ in merged) * sum(other == label for _, other in merged)
        for label in ("a", "b", "tie")
    ) / len(merged) ** 2  # fmt: skip
    status = review_status(folder)
    assert status.kappas["ann", "bob"].value == pytest.approx((observed - chance) / (1 - chance))
    assert (status.pushed, status.complete) == (200, 198)
    assert status.people == {
        "ann": {"submitted": 200}, "bob": {"submitted": 198, "draft": 1, "discarded": 1},
    }  # fmt: skip
    # Judge against people: right 1, tie or no majority 0.5, overruled 0, over 200 pairs.
    no_majority = bob_ties - set(ids[-2:])
    alone = {pair for pair in overruled if pair in ids[-2:]}
    wrong = len((overruled - no_majority) | alone)
    ties = len(no_majority)
    assert status.decision is not None
    assert status.decision.n == 200
    assert status.decision.value == pytest.approx((200 - wrong - ties + ties / 2) / 200)
    assert status.dataset is not None
    assert status.dataset.pairs == len([row for row in decisions.values() if row["kept"]])
    assert "human:ann" in run_agreement(run).as_dict()["annotators"]
    json.dumps(status.as_dict(), allow_nan=False)


def test_roles_of_people(argilla: Server, people: dict, run: RunDir) -> None:
    """Calibration changes nothing; as members of the jury people are outvoted or not."""
    folder, dataset = start(argilla, run, "roles", n=10, strategy="random", overlap=1)
    pushed = folder.pairs()
    before = run.round(0).decisions.table()
    text = run.config.read_text()
    for record in argilla.api.records(dataset):
        answer(people["ann"], record["id"], OTHER[the_chosen(pushed[record["external_id"]])])

    def decide_with(role: str) -> dict[str, dict]:
        run.config.write_text(text.replace("people: override", f"people: {role}"))
        folder.write_responses(folder.responses().slice(0, 0))
        for index in run.round(0).votes.indices():  # as if nobody had been asked
            votes = run.round(0).votes.read(index).to_pandas()
            import pyarrow as pa

            kept = pa.Table.from_pandas(
                votes[~votes["labeler"].str.startswith("human:")], preserve_index=False
            )
            run.round(0).votes.replace(index, kept)
        pull(argilla.api, folder)
        return {row["pair_id"]: row for row in run.round(0).decisions.table().to_pylist()}

    assert decide_with("calibration") == {row["pair_id"]: row for row in before.to_pylist()}
    by_jury = decide_with("jury")
    overruled = decide_with("override")
    for row in before.to_pylist():
        pair = row["pair_id"]
        if pair not in pushed:
            continue
        assert overruled[pair]["chosen_id"] == row["rejected_id"]
        # The mean of the judge's probability and the other way round for certain.
        expected = max(row["p_chosen"] / 2, 1 - row["p_chosen"] / 2)
        if abs(row["p_chosen"] / 2 - 0.5) > 0.01:
            assert by_jury[pair]["p_chosen"] == pytest.approx(expected)


def test_assisted_mode(argilla: Server, people: dict, run: RunDir) -> None:
    folder, dataset = start(argilla, run, "assisted", n=30, strategy="uncertain", mode="assisted",
                            overlap=1)  # fmt: skip
    pushed = folder.pairs()
    found = (
        people["ann"]
        .post(f"/me/datasets/{dataset}/records/search", json={}, params={"include": "suggestions"})
        .json()["items"]
    )
    sure = [pushed[item["record"]["external_id"]]["p_chosen"] for item in found]
    assert sure == sorted(sure)  # the most uncertain first
    for item in found:
        record = item["record"]
        [suggestion] = record["suggestions"]
        assert suggestion["value"] == the_chosen(pushed[record["external_id"]])
        assert suggestion["agent"] == "jury"
        assert record["metadata"]["verdict_judge"] in ("a", "b", "tie")
    for item in found[:3]:
        answer(people["ann"], item["record"]["id"], "a")
    pull(argilla.api, folder)
    status = review_status(folder)
    assert not status.measured
    assert status.dataset is None
    assert "says nothing about how good" in render_review_status(status)


def test_blind_mode_hides_what_the_labelers_think(
    argilla: Server,
    people: dict,
    run: RunDir,
) -> None:
    _, dataset = start(argilla, run, "hidden", n=20)
    shown = (
        people["ann"]
        .post(f"/me/datasets/{dataset}/records/search", json={}, params={"include": "suggestions"})
        .json()["items"]
    )
    for item in shown:
        assert set(item["record"]["metadata"]) == {"round", "length_a", "length_b"}
        assert not item["record"].get("suggestions")
    mine = people["ann"].get(f"/me/datasets/{dataset}/metadata-properties").json()["items"]
    assert {one["name"] for one in mine} == {"round", "length_a", "length_b"}
    for whole in argilla.api.records(dataset):  # an owner, on whatever server
        assert set(whole["metadata"]) == {"round", "length_a", "length_b"}
    every = argilla.api.request("GET", f"me/datasets/{dataset}/metadata-properties")["items"]
    assert {one["name"] for one in every} == {"round", "length_a", "length_b"}
    guidelines = argilla.api.request("GET", f"datasets/{dataset}")["guidelines"]
    assert "Both bad" in guidelines
    with pytest.raises(ReviewError, match="is a review in blind mode"):
        start(argilla, run, "hidden", n=20, mode="assisted")


def test_a_blind_review_of_an_older_version_is_pulled_and_cleaned_by_a_push(
    argilla: Server, people: dict, run: RunDir
) -> None:
    """It has what the labelers think on the server, hidden from annotators."""
    folder, dataset = start(argilla, run, "older", n=5)
    argilla.api.request(
        "POST", f"datasets/{dataset}/metadata-properties",
        json={"name": "decision", "title": "Decision", "settings": {"type": "terms"},
              "visible_for_annotators": False},
    )  # fmt: skip
    [first, *_] = argilla.api.records(dataset)
    told = {**first["metadata"], "decision": "a"}
    argilla.api.upsert(
        dataset,
        [{"external_id": first["external_id"], "fields": first["fields"], "metadata": told}],
    )
    answer(people["ann"], first["id"], "a")
    pulled = pull(argilla.api, folder)
    assert pulled.people == {"ann": 1}
    assert review_status(folder).measured
    assert next(argilla.api.records(dataset))["metadata"]["decision"] == "a"
    start(argilla, run, "older", n=5)
    assert all(
        set(one["metadata"]) == {"round", "length_a", "length_b"}
        for one in argilla.api.records(dataset)
    )
    every = argilla.api.request("GET", f"me/datasets/{dataset}/metadata-properties")["items"]
    assert len(every) == 3
    assert pull(argilla.api, folder).people == {"ann": 1}


def test_more_pairs_join_the_same_review(argilla: Server, run: RunDir) -> None:
    folder, dataset = start(argilla, run, "more", n=20, strategy="random")
    first = folder.pairs()
    start(argilla, run, "more", n=20, strategy="random")
    assert folder.pairs() == first
    assert len(folder.draws()) == 1
    start(argilla, run, "more", n=20, strategy="random", seed=1)
    both = folder.pairs()
    assert len(first) < len(both) <= 40
    assert all(both[pair] == row for pair, row in first.items())
    assert len(list(argilla.api.records(dataset))) == len(both)
    population = len(run.round(0).decisions.table().filter(
        run.round(0).decisions.table()["kept"]))  # fmt: skip
    expected = 1 - (1 - 20 / population) ** 2
    assert list(folder.inclusion().values()) == pytest.approx([expected] * population)


def test_a_dataset_of_somebody_else(argilla: Server, people: dict, tmp_path: Path) -> None:
    rows = [{"prompt": f"q{i}", "chosen": f"good {i}", "rejected": f"bad {i}"} for i in range(30)]
    file = tmp_path / "theirs.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)))
    folder = ReviewFolder(tmp_path / "review")
    review = push(
        argilla.api, DatasetSubjects(str(file)), folder,
        PushOptions(name=f"theirs-{tmp_path.name}", n=25, strategy="random", overlap=1),
        source=str(file), is_run=False,
    )  # fmt: skip
    pushed = folder.pairs()
    wrong = 0
    for number, record in enumerate(argilla.api.records(review.dataset_id)):
        good = the_chosen(pushed[record["external_id"]])
        assert record["fields"][f"answer_{good}"].startswith("good")
        wrong += number % 5 == 0
        answer(people["ann"], record["id"], OTHER[good] if number % 5 == 0 else good)
    pull(argilla.api, folder)
    status = review_status(folder)
    assert status.decision is not None
    assert status.decision.value == pytest.approx(1 - wrong / 25)
    assert status.differences[0].place.startswith("theirs.jsonl:")
    assert status.dataset is not None
    assert (folder.root / "votes.parquet").exists()


def test_what_can_go_wrong_is_one_line_and_loses_nothing(
    argilla: Server,
    people: dict,
    run: RunDir,
    tmp_path: Path,
) -> None:
    folder, dataset = start(argilla, run, "wrong", n=10, overlap=1)
    records = [one["id"] for one in argilla.api.records(dataset)]
    path = add_person(argilla.api, f"carl-{tmp_path.name}", "prefloop", tmp_path / "carl.json")
    carl = argilla.sign_in(f"carl-{tmp_path.name}", json.loads(path.read_text())["password"])
    answer(carl, records[0], "a")
    answer(people["ann"], records[0], "b")
    answer(people["ann"], records[1], "tie")
    pull(argilla.api, folder)

    with pytest.raises(ReviewError, match="cannot be reached"):
        ArgillaApi(Account("http://127.0.0.1:9", "key"))
    with pytest.raises(ReviewError, match="does not accept the API key"):
        ArgillaApi(Account(argilla.url, "wrong"))
    key = httpx.get(
        f"{argilla.url}/api/v1/me",
        headers={"Authorization": carl.headers["Authorization"]},
    ).json()["api_key"]
    with pytest.raises(ReviewError, match="may not do that"):
        pull(ArgillaApi(Account(argilla.url, key)), folder)

    # A rater removed: their response stays, under their name.
    users = {name: one for one, name in argilla.api.users().items()}
    argilla.api.request("DELETE", f"users/{users[f'carl-{tmp_path.name}']}")
    found = pull(argilla.api, folder)
    assert found.people == {"ann": 2, f"carl-{tmp_path.name}": 1}
    assert found.removed_people == 1
    assert "removed from the" in render_pulled(found)

    # A record removed: its responses are known, and not counted.
    argilla.api.request("DELETE", f"datasets/{dataset}/records", params={"ids": records[1]})
    found = pull(argilla.api, folder)
    assert found.statuses == {"submitted": 2, "gone": 1}
    assert found.people == {"ann": 1, f"carl-{tmp_path.name}": 1}
    assert "no longer on the server" in render_pulled(found)
    kept = folder.responses()

    # The dataset deleted by hand: said, and what was pulled is still there.
    argilla.api.request("DELETE", f"datasets/{dataset}")
    with pytest.raises(ReviewError, match=r"has no dataset .* \(any more\)"):
        pull(argilla.api, folder)
    with pytest.raises(ReviewError, match=r"has no dataset .* \(any more\)"):
        start(argilla, run, "wrong", n=10, overlap=1)
    assert folder.responses().equals(kept)
    assert len(review_status(folder).people) >= 1

    missing = CliRunner().invoke(app, ["review", "pull", str(tmp_path), "--home", str(tmp_path)])
    assert isinstance(missing.exception, ReviewError)
    with run.lock(), pytest.raises(RunError, match="in use"), run.lock():
        pass


def test_the_rubric_is_for_people() -> None:
    rubric = judge_rubric("pairwise")
    assert "What counts, the most important first" in rubric
    for for_models in ("Reply", "tags", "<", "the request stands here"):
        assert for_models not in rubric
    assert judge_rubric("pairwise_short").startswith("Which answer follows the request better")
