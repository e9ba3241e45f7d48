"""Whatever ends a process, the next one goes on with its jobs: none is lost, none is sent twice."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import threading
from urllib.parse import urlsplit

import pytest

from prefloop.data.errors import StorageError
from prefloop.data.protocol import EngineFailed
from prefloop.pipeline.engines.openai.batch.job_folder import open_jobs
from prefloop.pipeline.engines.openai.openai_server import OpenAIServer
from prefloop.pipeline.engines.settings import OpenAIEngine
from tests.helpers.paths import ROOT
from tests.helpers.served import ask
from tests.pipeline.engines.openai.batch.batch_server import batch_server
from tests.pipeline.engines.openai.batch.test_jobs import (
    PRICES,
    QUICK,
    ask_in_jobs,
    said,
    spent,
    texts,
    words,
)

FIVE = """
import sys
from pathlib import Path
from tests.pipeline.engines.openai.batch.test_jobs import PRICES, ask_in_jobs, words
class Server: url = sys.argv[1]
ask_in_jobs(Server, words(0, 5), Path(sys.argv[2]), **PRICES)
"""


def killed_at(server, folder, call, *, done):
    """Have a process ask five questions, and kill it when ``call`` comes; ``done``: it is done,
    and only the word of it is lost."""
    process = None

    def kill(handler):
        if done:
            path = urlsplit(handler.path).path.removeprefix("/v1")
            with server.lock:
                server.handle(handler.command, path, handler)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        handler.cut()
        return True

    server.faults[call] = [kill]
    command = [sys.executable, "-c", FIVE, server.url, str(folder)]
    process = subprocess.Popen(command, env=os.environ | {"PYTHONPATH": str(ROOT)}, cwd=ROOT)
    assert process.wait() == -signal.SIGKILL


@pytest.mark.parametrize(
    ("call", "done"),
    [
        ("POST /files", False),
        ("POST /files", True),
        ("POST /batches", False),
        ("POST /batches", True),
        ("GET /batches/", True),
        ("GET /files/", False),
    ],
)
def test_a_job_of_a_killed_process_is_taken_up_and_none_is_sent_twice(tmp_path, call, done):
    with batch_server() as server:
        killed_at(server, tmp_path, call, done=done)
        begun = len(server.jobs)
        assert texts(ask_in_jobs(server, words(0, 5), tmp_path, **PRICES)) == said(0, 5)
        assert begun == (0 if call in ("POST /files", "POST /batches") and not done else begun)
        assert len(server.jobs) == 1
    assert spent(tmp_path) == (5 * 15, 5 * 7.5)
    assert open_jobs(tmp_path) == ()


def interrupted(server, folder):
    """Ask five questions, and go when their job is at work."""

    async def go():
        config = OpenAIEngine(base_url=server.url, mode="batch", batch=QUICK, **PRICES)
        engine = OpenAIServer(config, "m", cache=folder / "e")
        asked = asyncio.gather(*(engine.generate(one) for one in words(0, 5)))
        while not open_jobs(folder) or open_jobs(folder)[0].done == 0:
            await asyncio.sleep(0.01)
        asked.cancel()
        await asyncio.gather(asked, return_exceptions=True)
        await engine.aclose()

    asyncio.run(go())


def test_an_interrupted_run_leaves_its_jobs_at_work_and_says_so(tmp_path, caplog):
    with batch_server(looks=10_000) as server:
        interrupted(server, tmp_path)
        assert "1 job of 5 requests, 1 of them done, goes on there: the same command" in caplog.text
        [left] = open_jobs(tmp_path)
        assert (left.engine, left.jobs, left.requests, left.done) == ("e", 1, 5, 1)
        server.jobs["batch_0"].looks = server.looks = 0
        assert texts(ask_in_jobs(server, words(0, 6), tmp_path, **PRICES)) == said(0, 6)
        assert server.asked == [[f"word {at}" for at in range(5)], ["word 5"]]
    assert spent(tmp_path) == (6 * 15, 6 * 7.5)


def test_answers_that_nobody_asks_for_any_more_are_kept(tmp_path):
    with batch_server(looks=10_000) as server:
        interrupted(server, tmp_path)
        server.jobs["batch_0"].looks = server.looks = 0
        ask_in_jobs(server, words(3, 4), tmp_path, **PRICES)
        assert texts(ask_in_jobs(server, words(0, 5), tmp_path, **PRICES)) == said(0, 5)
        assert len(server.jobs) == 1


def test_answers_that_come_when_those_who_waited_have_gone_are_kept(tmp_path):
    fetched = threading.Event()

    async def go(url):
        config = OpenAIEngine(base_url=url, mode="batch", batch=QUICK)
        engine = OpenAIServer(config, "m", cache=tmp_path / "e")
        tasks = [asyncio.ensure_future(engine.generate(one)) for one in words(0, 5)]
        while not fetched.is_set():
            await asyncio.sleep(0.01)
        for task in tasks:
            task.cancel()
        while open_jobs(tmp_path):
            await asyncio.sleep(0.01)
        await engine.aclose()

    def seen(_):
        fetched.set()
        return False

    with batch_server() as server:
        server.faults["GET /files/"] = [seen]
        asyncio.run(go(server.url))
        assert texts(ask_in_jobs(server, words(0, 5), tmp_path)) == said(0, 5)
        assert len(server.jobs) == 1


def test_what_a_job_at_work_may_cost_is_set_aside_for_it(tmp_path):
    with batch_server(looks=10_000) as server:
        interrupted(server, tmp_path)
        server.jobs["batch_0"].looks = server.looks = 0
        # Five times 7.5 at most are under way, and the sixth would be beyond.
        outcomes = ask_in_jobs(server, words(0, 6), tmp_path, max_cost=40, **PRICES)
        assert texts(outcomes)[:5] == said(0, 5)
        assert isinstance(outcomes[5], EngineFailed)
        assert len(server.jobs) == 1


def test_a_job_is_charged_once_whenever_the_process_ends(tmp_path):
    with batch_server() as server:
        ask_in_jobs(server, words(0, 5), tmp_path, **PRICES)
        [record] = (tmp_path / "e.jobs").glob("*/job.json")
        known = json.loads(record.read_text())
        record.write_text(json.dumps(known | {"is_over": False}))  # as it was a moment before
        sent = server.files[server.jobs["batch_0"].row["input_file_id"]]
        (record.parent / "requests.jsonl").write_bytes(sent)
        assert texts(ask_in_jobs(server, words(0, 6), tmp_path, **PRICES)) == said(0, 6)
        assert len(server.jobs) == 2
    assert spent(tmp_path) == (6 * 15, 6 * 7.5)
    assert open_jobs(tmp_path) == ()


def test_a_job_that_the_server_has_forgotten_is_sent_again_and_counts_in_full(tmp_path, caplog):
    with batch_server(looks=10_000) as server:
        interrupted(server, tmp_path)
        server.jobs.clear()
        server.looks = 1
        assert texts(ask_in_jobs(server, words(0, 5), tmp_path, **PRICES)) == said(0, 5)
        assert len(server.jobs) == 1
        assert "knows nothing of the job batch_0 any more" in caplog.text
        lines = (tmp_path / "e.spent.jsonl").read_text().splitlines()
        reserved = sum(json.loads(line)["cost"] for line in lines if "reserve" in line)
        [outcome] = ask_in_jobs(server, words(9, 10), tmp_path, max_cost=reserved, **PRICES)
        assert "by requests of a run that was killed, or of other" in str(outcome)


def test_mode_live_says_that_jobs_are_at_work(tmp_path, caplog):
    with batch_server(looks=10_000) as server:
        interrupted(server, tmp_path)
        caplog.clear()
        assert texts(ask(server.url, *words(0, 1), folder=tmp_path / "e")) == said(0, 1)
    assert "5 requests are in jobs that were begun in mode: batch" in caplog.text


def test_a_damaged_record_is_one_line(tmp_path):
    with batch_server(looks=10_000) as server:
        interrupted(server, tmp_path)
        [record] = (tmp_path / "e.jobs").glob("*/job.json")
        record.write_text('{"name": 3}')
        [outcome] = ask_in_jobs(server, words(0, 1), tmp_path)
        assert isinstance(outcome, StorageError)
        assert "delete its folder" in str(outcome)
        assert len(server.jobs) == 1


def test_a_folder_for_the_jobs_is_needed():
    with pytest.raises(EngineFailed, match="no folder to keep its jobs in"):
        OpenAIServer(OpenAIEngine(mode="batch"), "m")
