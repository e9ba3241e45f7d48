"""The embedded Argilla: starting and stopping it, and its search, over its own REST interface."""

from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest

from prefloop.pipeline.review.account import Account, find_account
from prefloop.pipeline.review.errors import ReviewError
from prefloop.pipeline.review.server.home import Home, find_home, write_secret
from prefloop.pipeline.review.server.up import running_server
from prefloop.pipeline.review.users import add_person
from tests.helpers.argilla_server import VENV, Server

SEARCHED = [
    ("good", 0.9, 3, "The quick brown fox"), ("bad", 0.1, 1, "a lazy dog"),
    ("good", 0.5, 2, "東京タワーの写真"), (None, None, None, "Ünïcode (and parentheses)"),
]  # fmt: skip


@pytest.fixture(scope="module")
def dataset(argilla: Server) -> str:
    """Four records with metadata, suggestions and texts of different kinds."""
    import argilla as rg

    api = argilla.api
    workspace = rg.Workspace(name="search", client=api.client).create()
    made = rg.Dataset(
        name="search", workspace=workspace, client=api.client,
        settings=rg.Settings(
            fields=[rg.ChatField("prompt"), rg.TextField("answer")],
            questions=[rg.LabelQuestion("verdict", labels=["a", "b"])],
            metadata=[rg.TermsMetadataProperty("kind"), rg.FloatMetadataProperty("margin"),
                      rg.IntegerMetadataProperty("length"),
                      rg.FloatMetadataProperty("p_chosen", visible_for_annotators=False)],
            distribution=rg.TaskDistribution(min_submitted=2),
        ),
    ).create()  # fmt: skip
    dataset_id = str(made.id)
    [question] = api.request("GET", f"datasets/{dataset_id}/questions")["items"]
    records = []
    for number, (kind, margin, length, text) in enumerate(SEARCHED):
        metadata = {"kind": kind, "margin": margin, "length": length}
        records.append(
            {
                "external_id": f"r{number}",
                "fields": {"prompt": [{"role": "user", "content": f"question {number}"}],
                           "answer": text},
                "metadata": {key: value for key, value in metadata.items() if value is not None},
                "suggestions": [{"question_id": question["id"], "value": "ab"[number % 2],
                                 "score": number / 10, "agent": "judge"}],
            }
        )  # fmt: skip
    api.upsert(dataset_id, records)
    return dataset_id


def search(server: Server, dataset_id: str, **query: object) -> list[str]:
    found = server.api.request(
        "POST", f"datasets/{dataset_id}/records/search", json=query, params={"limit": 50}
    )
    names = [item["record"]["external_id"] for item in found["items"]]
    assert found["total"] == len(names)
    return names


def terms(entity: str, values: list[str], **scope: str) -> dict:
    return {"type": "terms", "scope": {"entity": entity, **scope}, "values": values}


def test_text(argilla: Server, dataset: str) -> None:
    def texts(q: str, **more: str) -> list[str]:
        return search(argilla, dataset, query={"text": {"q": q, **more}})

    assert texts("fox") == ["r0"]
    assert texts("question") == ["r0", "r1", "r2", "r3"]
    assert texts("question", field="answer") == []
    assert texts("fox | dog") == ["r0", "r1"]
    assert texts("question -fox") == ["r1", "r2", "r3"]
    assert texts("東京") == ["r2"]
    assert texts("unicode (and | or)") == ["r3"]
    assert texts("") == []


def test_filters_and_order(argilla: Server, dataset: str) -> None:
    def filtered(*filters: dict, sort: list | None = None) -> list[str]:
        query: dict = {"filters": {"type": "and", "and": list(filters)}} if filters else {}
        return search(argilla, dataset, **query, **({"sort": sort} if sort else {}))

    kind = terms("metadata", ["good"], metadata_property="kind")
    assert filtered(kind) == ["r0", "r2"]
    margin = {"entity": "metadata", "metadata_property": "margin"}
    assert filtered({"type": "range", "scope": margin, "ge": 0.4}) == ["r0", "r2"]
    assert filtered({"type": "range", "scope": margin, "ge": 0.2, "le": 0.6}) == ["r2"]
    length = {"entity": "metadata", "metadata_property": "length"}
    assert filtered(kind, {"type": "range", "scope": length, "le": 2}) == ["r2"]
    suggestion = {"question": "verdict", "property": "value"}
    assert filtered(terms("suggestion", ["b"], **suggestion)) == ["r1", "r3"]
    agent = {"question": "verdict", "property": "agent"}
    assert filtered(terms("suggestion", ["judge"], **agent)) == ["r0", "r1", "r2", "r3"]
    score = {"entity": "suggestion", "question": "verdict", "property": "score"}
    assert filtered({"type": "range", "scope": score, "ge": 0.2}) == ["r2", "r3"]
    for scope, expected in ((margin, ["r1", "r2", "r0", "r3"]), (score, ["r0", "r1", "r2", "r3"])):
        assert filtered(sort=[{"scope": scope, "order": "asc"}]) == expected
    descending = [{"scope": margin, "order": "desc"}]
    assert filtered(sort=descending) == ["r0", "r2", "r1", "r3"]  # those without one come last
    by_time = [{"scope": {"entity": "record", "property": "inserted_at"}, "order": "desc"}]
    assert set(filtered(sort=by_time)) == {"r0", "r1", "r2", "r3"}


def test_metrics_and_pages(argilla: Server, dataset: str) -> None:
    api = argilla.api
    kinds = {one["name"]: one["id"] for one in api.request(
        "GET", f"me/datasets/{dataset}/metadata-properties")["items"]}  # fmt: skip
    metrics = {name: api.request("GET", f"metadata-properties/{one}/metrics")
               for name, one in kinds.items()}  # fmt: skip
    assert metrics["margin"]["min"] == 0.1
    assert metrics["length"]["max"] == 3
    assert [(one["term"], one["count"]) for one in metrics["kind"]["values"]] == [
        ("good", 2), ("bad", 1),
    ]  # fmt: skip
    pages = [
        api.request("POST", f"datasets/{dataset}/records/search", json={},
                    params={"limit": 3, "offset": offset})
        for offset in (0, 3, 6)
    ]  # fmt: skip
    assert [len(page["items"]) for page in pages] == [3, 1, 0]
    assert {page["total"] for page in pages} == {4}


def test_two_annotators(argilla: Server, dataset: str, tmp_path: Path) -> None:
    people = {}
    for name in ("search-ann", "search-bob"):
        path = add_person(argilla.api, name, "search", tmp_path / f"{name}.json")
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        people[name] = argilla.sign_in(name, json.loads(path.read_text())["password"])
    ann, bob = people.values()

    def pending(client: httpx.Client) -> list[str]:
        mine = terms("response", ["pending"], property="status")
        found = client.post(
            f"/me/datasets/{dataset}/records/search",
            json={"filters": {"type": "and", "and": [mine]}},
        ).json()
        return [item["record"]["external_id"] for item in found["items"]]

    records = {one["external_id"]: one["id"] for one in argilla.api.records(dataset)}
    assert pending(ann) == ["r0", "r1", "r2", "r3"]
    answer = {"status": "submitted", "values": {"verdict": {"value": "a"}}}
    for client in (ann, bob):
        client.post(f"/records/{records['r0']}/responses", json=answer).raise_for_status()
    ann.post(f"/records/{records['r1']}/responses", json=answer).raise_for_status()
    assert pending(ann) == ["r2", "r3"]
    assert pending(bob) == ["r1", "r2", "r3"]
    assert argilla.api.request("GET", f"datasets/{dataset}/progress")["completed"] == 1
    assert ann.get(f"/me/datasets/{dataset}/metrics").json()["responses"]["submitted"] == 2
    said_a = terms("response", ["a"], question="verdict")
    assert search(argilla, dataset, filters={"type": "and", "and": [said_a]}) == ["r0", "r1"]
    ann.post(f"/records/{records['r2']}/responses", json={"status": "discarded"}).raise_for_status()
    assert pending(ann) == ["r3"]
    # A lower overlap completes more: a job that the server puts off to its worker.
    distribution = {"strategy": "overlap", "min_submitted": 1}
    changed = argilla.api.request(
        "PATCH", f"datasets/{dataset}", json={"distribution": distribution}
    )
    assert changed["distribution"]["min_submitted"] == 1
    until = time.monotonic() + 30
    while argilla.api.request("GET", f"datasets/{dataset}/progress")["completed"] != 2:
        assert time.monotonic() < until
        time.sleep(0.2)


def test_what_is_hidden_from_annotators_neither_filters_nor_sorts(
    argilla: Server, dataset: str, tmp_path: Path
) -> None:
    path = add_person(argilla.api, "search-cat", "search", tmp_path / "cat.json")
    cat = argilla.sign_in("search-cat", json.loads(path.read_text())["password"])

    def asked(name: str) -> list[int]:
        scope = {"entity": "metadata", "metadata_property": name}
        some = {"type": "range", "scope": scope, "ge": 0}
        bodies = [
            {"filters": {"type": "and", "and": [some]}},
            {"sort": [{"scope": scope, "order": "asc"}]},
        ]
        url = f"/me/datasets/{dataset}/records/search"
        return [cat.post(url, json=body).status_code for body in bodies]

    assert asked("length") == [200, 200]
    assert asked("p_chosen") == [422, 422]


def test_only_its_own_origin_is_answered(argilla: Server) -> None:
    status = f"{argilla.api.account.url}/api/v1/status"
    assert httpx.get(status).status_code == 200
    assert httpx.get(status, headers={"Host": "evil.example"}).status_code == 403
    other = httpx.get(status, headers={"Origin": "http://evil.example"})
    assert other.status_code == 403
    assert "access-control-allow-origin" not in other.headers


def test_nothing_of_it_is_open_to_others(argilla: Server) -> None:
    for key in ("argilla.apikey", "owner.apikey", ""):
        me = httpx.get(f"{argilla.url}/api/v1/me", headers={"X-Argilla-Api-Key": key})
        assert me.status_code == 401
    for name, password in (("argilla", "12345678"), ("owner", "12345678")):
        form = {"username": name, "password": password}
        assert httpx.post(f"{argilla.url}/api/v1/token", data=form).status_code == 401
    assert argilla.url.startswith("http://127.0.0.1:")
    data = argilla.home.data
    assert stat.S_IMODE(data.stat().st_mode) == 0o700
    assert stat.S_IMODE(argilla.home.credentials.stat().st_mode) == 0o600
    owner = argilla.home.owner()
    assert owner.password not in repr(owner)
    assert owner.api_key not in repr(Account(argilla.url, owner.api_key))
    log = argilla.home.log.read_text()
    assert owner.password not in log
    assert owner.api_key not in log


def test_a_second_start_says_where_the_first_is(argilla: Server) -> None:
    with (
        pytest.raises(ReviewError, match=f"runs already, at {argilla.url}"),
        running_server(argilla.home),
    ):
        pass
    port = int(argilla.url.rsplit(":", 1)[1])
    other = Home(argilla.home.root / "other", venv=VENV)
    with (
        pytest.raises(ReviewError, match=f"port {port} of 127.0.0.1 cannot be used"),
        running_server(other, port=port),
    ):
        pass


def processes_in(folder: Path) -> list[int]:
    """Processes whose working directory is ``folder``: server, worker and Redis."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if (process / "cwd").resolve() == folder:
                found.append(int(process.name))
        except OSError:
            continue
    return found


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_data_stays_and_no_process_does(
    argilla_home: Home,
    tmp_path: Path,
    how: signal.Signals,
) -> None:
    home = Home(tmp_path / "home", venv=VENV)
    (home.root).mkdir()
    (home.root / "venv").symlink_to(VENV)
    command = [sys.executable, "-c", "from prefloop.pipeline.commands.app import main; main()",
               "review", "up", "--home", str(home.root)]  # fmt: skip
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as up:
        try:
            assert up.stdout is not None
            said = up.stdout.readline()
            assert "Argilla runs at http://127.0.0.1:" in said
            assert str(home.credentials) in up.stdout.readline()
            account = find_account(home=home.root)
            made = httpx.post(
                f"{account.url}/api/v1/workspaces", json={"name": "kept"},
                headers={"X-Argilla-Api-Key": account.api_key},
            )  # fmt: skip
            assert made.status_code == 201
            assert len(processes_in(home.data)) == 3
        finally:
            up.send_signal(how)
    until = time.monotonic() + 20
    while processes_in(home.data):
        assert time.monotonic() < until, "left behind"
        time.sleep(0.2)
    with running_server(home) as again:
        names = httpx.get(
            f"{again.url}/api/v1/me/workspaces",
            headers={"X-Argilla-Api-Key": home.owner().api_key},
        ).json()["items"]
        assert [one["name"] for one in names] == ["kept"]
    assert home.url() is None


def test_accounts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ARGILLA_API_KEY", raising=False)
    with pytest.raises(ReviewError, match="no API key: put it into the environment variable"):
        find_account("http://elsewhere")
    monkeypatch.setenv("ARGILLA_API_KEY", "key")
    assert find_account("http://elsewhere/").url == "http://elsewhere"
    with pytest.raises(ReviewError, match="start one with `prefloop review up`"):
        find_account(home=tmp_path)
    monkeypatch.setenv("PREFLOOP_ARGILLA_HOME", str(tmp_path))
    home = find_home()
    assert home.root == tmp_path.resolve()
    home.prepare()
    first = home.owner()
    home.prepare()
    assert home.owner() == first  # made once
    home.credentials.chmod(0o644)
    with pytest.raises(ReviewError, match=r"others may read it \(mode 644\): run chmod 600"):
        home.owner()
    write_secret(home.credentials, {"a": "b"})
    assert stat.S_IMODE(home.credentials.stat().st_mode) == 0o600
