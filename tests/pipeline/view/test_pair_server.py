"""The server over real HTTP: all pairs for its owner, nothing for others."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlencode, urlsplit
from urllib.request import urlopen

import pytest

import prefloop
from prefloop.data.errors import InputError
from prefloop.pipeline.run.run_dir import RunDir
from prefloop.pipeline.view.pair_server import PairServer
from tests.helpers.paths import ROOT
from tests.helpers.synthetic_run import HOSTILE, write_run


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    return write_run(tmp_path_factory.mktemp("served") / "run")


@pytest.fixture(scope="module")
def server(run: RunDir) -> Iterator[PairServer]:
    with prefloop.view(run.root) as found:
        yield found


def ask(
    server: PairServer, path: str, *, method: str = "GET", host: str | None = None
) -> tuple[http.client.HTTPResponse, bytes]:
    """``path`` begins behind the token, or with a slash."""
    address = urlsplit(server.url)
    connection = http.client.HTTPConnection(address.hostname or "", address.port, timeout=30)
    target = path if path.startswith("/") else f"{address.path}{path}"
    connection.request(method, target, headers={"Host": host or address.netloc})
    answer = connection.getresponse()
    body = answer.read()
    connection.close()
    return answer, body


def asked(server: PairServer, path: str, **query: Any) -> Any:
    answer, body = ask(server, f"{path}?{urlencode(query)}")
    assert answer.status == 200, body
    return json.loads(body)


def test_every_pair_is_reached_page_by_page(server: PairServer, run: RunDir) -> None:
    ids: list[str] = []
    while True:
        found = asked(server, "api/pairs", **{"from": len(ids), "count": 50})
        if not found["pairs"]:
            break
        ids += [pair["pair_id"] for pair in found["pairs"]]
    decisions = [row for one in run.rounds() for row in one.decisions.table().to_pylist()]
    assert len(ids) == found["total"] == len(decisions)
    assert set(ids) == {row["pair_id"] for row in decisions}


def test_pairs_are_filtered_sorted_and_searched(server: PairServer) -> None:
    found = asked(server, "api/pairs", fate="kept", round=1, sort="margin", descending=1, count=200)
    margins = [pair["margin"] for pair in found["pairs"]]
    assert found["total"] == len(margins) == 24
    assert margins == sorted(margins, reverse=True)
    searched = asked(server, "api/pairs", fate="kept", search="FOX 3. use")
    assert searched["total"] == 2
    assert all("fox 3." in pair["start"] for pair in searched["pairs"])


def test_a_pair_comes_in_full(server: PairServer) -> None:
    [listed] = asked(server, "api/pairs", fate="tie", count=1)["pairs"]
    pair = asked(server, "api/pair", id=listed["id"])
    assert pair["pair_id"] == listed["pair_id"]
    assert len(pair["votes"]) == 3
    assert HOSTILE in pair["votes"][0]["rationale"]


def test_the_page_may_ask_its_server_alone(server: PairServer) -> None:
    answer, body = ask(server, "")
    page = body.decode()
    assert answer.headers["Content-Type"] == "text/html; charset=utf-8"
    assert "connect-src 'self'" in page.replace("&#39;", "'")
    assert "fox 3" not in page
    expected = {
        "Cache-Control": "no-store", "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "no-referrer", "X-Frame-Options": "DENY",
        "Cross-Origin-Resource-Policy": "same-origin",
    }  # fmt: skip
    assert {name: answer.headers[name] for name in expected} == expected
    assert "Access-Control-Allow-Origin" not in answer.headers


@pytest.mark.parametrize("host", ["evil.example", "evil.example:80", "127.0.0.1", "localhost:1"])
def test_another_host_is_refused(server: PairServer, host: str) -> None:
    answer, body = ask(server, "api/pairs", host=host)
    assert answer.status == 403
    assert b"pair_id" not in body


def test_this_machine_may_be_called_localhost(server: PairServer) -> None:
    answer, _ = ask(server, "api/pairs", host=f"localhost:{urlsplit(server.url).port}")
    assert answer.status == 200


@pytest.mark.parametrize("path", ["/", "/api/pairs", "/wrong-token/api/pairs", "/%00/é/api/pairs"])
def test_without_the_token_there_is_nothing(server: PairServer, path: str) -> None:
    answer, body = ask(server, path.replace("é", "%C3%A9"))
    assert answer.status == 404
    assert b"pair_id" not in body


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "HEAD", "OPTIONS"])
def test_only_reading_is_possible(server: PairServer, method: str) -> None:
    answer, _ = ask(server, "api/pairs", method=method)
    assert answer.status == 501


@pytest.mark.parametrize(
    ("path", "status"),
    [("api/pairs?sort=x", 400), ("api/pairs?from=-1", 400), ("api/pair?id=x", 400),
     ("api/pair?id=99999", 404), ("api/other", 404), ("../../etc/passwd", 404)],
)  # fmt: skip
def test_what_cannot_be_answered_is_one_line(server: PairServer, path: str, status: int) -> None:
    answer, body = ask(server, path)
    assert answer.status == status
    assert set(json.loads(body)) == {"error"}


def test_it_listens_on_this_machine_alone(server: PairServer) -> None:
    assert urlsplit(server.url).hostname == "127.0.0.1"
    with pytest.raises(OSError, match="refused"):  # another address of this same machine
        socket.create_connection(("127.0.0.2", urlsplit(server.url).port or 0), timeout=5)


def test_two_servers_have_tokens_of_their_own(server: PairServer, run: RunDir) -> None:
    with prefloop.view(run.root) as other:
        token = urlsplit(other.url).path
        assert len(token) > 30
        answer, _ = ask(server, f"{token}api/pairs")
    assert answer.status == 404


def test_a_port_that_is_taken_is_one_line(server: PairServer, run: RunDir) -> None:
    with pytest.raises(InputError, match="choose another"):
        prefloop.view(run.root, port=urlsplit(server.url).port or 0)


def test_pairs_that_were_decided_again_are_not_mixed_up(tmp_path: Any) -> None:
    run = write_run(tmp_path / "run", rounds=1, blocks=2)
    with prefloop.view(run.root) as server:
        folder = run.round(0).decisions
        folder.replace(0, folder.read(0).slice(0, 0))
        answer, body = ask(server, "api/pairs?sort=place")
    assert answer.status == 400
    assert b"decided again" in body


def test_the_command_serves_until_it_is_interrupted(run: RunDir) -> None:
    words = [sys.executable, "-m", "prefloop", "view", str(run.root)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    ) as command:
        assert command.stdout
        assert command.stderr
        with urlopen(command.stdout.readline().strip()) as answer:
            assert b"prefloop pairs" in answer.read()
        command.send_signal(signal.SIGINT)
        assert command.wait(timeout=60) == 0
        assert command.stderr.read() == ""
