"""kill -9 of `prefloop relabel` while it asks a server: the same command asks for the rest."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import yaml

from prefloop.pipeline.run.run_dir import RunDir
from tests.helpers.paths import ROOT
from tests.helpers.runs import JUDGE, dataset_rows, run_small, small_config
from tests.helpers.servers import FaultyServer, Handler, by_prompt, faulty_server, good

LONG = {"type": "verifier", "name": "long", "function": "tests.helpers.scores:length"}


def verdict(prompt: str) -> Any:
    """By what is asked, so that each vote is its own."""
    first = sum(map(ord, prompt)) % 2 == 0
    word, other = ("A", "B") if first else ("B", "A")
    top = [{"token": word, "logprob": -0.2}, {"token": other, "logprob": -1.9}]
    return good(word, logprobs={"content": [{**top[0], "top_logprobs": top}]})


class Script:
    """Answers each question; from question number ``stop`` on, none until it is told to go on."""

    def __init__(self, stop: int) -> None:
        self.stop = stop
        self.stopped, self.goes_on = threading.Event(), threading.Event()
        self._lock = threading.Lock()
        self._asked = 0
        self.answered: list[str] = []

    def __call__(self, handler: Handler) -> None:
        with self._lock:
            self._asked += 1
            waits = self._asked > self.stop and not self.goes_on.is_set()
        if waits:
            self.stopped.set()
            self.goes_on.wait()
            return  # who asked is dead
        by_prompt(verdict)(handler)
        with self._lock:
            self.answered.append(json.dumps(handler.body, sort_keys=True))


def command(run: RunDir, server: FaultyServer, folder: Path) -> list[str]:
    labeler = {**JUDGE, "name": "served", "engine": "server", "model": "m", "orders": "one"}
    engine = {"type": "openai", "base_url": server.url, "max_concurrency": 1, "max_retries": 0}
    file = folder / "served.yaml"
    file.write_text(yaml.safe_dump({"labelers": [labeler], "engines": {"server": engine}}))
    return [sys.executable, "-m", "prefloop", "relabel", str(run.root), "--judge", str(file)]


def begin(words: list[str]) -> subprocess.Popen[str]:
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        words,
        cwd=ROOT,
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )


@pytest.mark.parametrize("stop", [5, 30])  # in the first block of two, and in the second
def test_killed_relabelling_goes_on_where_it_was(tmp_path: Path, stop: int) -> None:
    config = small_config(label={"labelers": [LONG]}, filter={"filters": []})
    calm = run_small(tmp_path / "calm", config)
    killed = run_small(tmp_path / "killed", config)

    script = Script(stop)
    with faulty_server(script) as server:
        first = begin(command(killed, server, tmp_path))
        assert script.stopped.wait(120), first.communicate(timeout=60)
        os.kill(first.pid, signal.SIGKILL)
        assert first.wait() == -signal.SIGKILL
        script.goes_on.set()
        assert not list(killed.relabels.glob("*/comparison.json"))
        before = list(script.answered)
        assert len(before) == stop
        second = begin(command(killed, server, tmp_path))
        said, _ = second.communicate(timeout=240)
        assert second.returncode == 0, said
    assert len(set(script.answered)) == len(script.answered), "a vote was asked for twice"

    whole = Script(10**6)
    with faulty_server(whole) as server:
        third = begin(command(calm, server, tmp_path))
        said, _ = third.communicate(timeout=240)
        assert third.returncode == 0, said
    assert set(whole.answered) == set(script.answered)
    [ours], [theirs] = (
        [path for path in run.relabels.iterdir() if path.is_dir()] for run in (killed, calm)
    )
    one, other = RunDir(ours), RunDir(theirs)
    assert one.round(0).votes.table().equals(other.round(0).votes.table())
    assert one.round(0).decisions.table().equals(other.round(0).decisions.table())
    assert dataset_rows(one) == dataset_rows(other)
    spent = [
        json.loads((run / "comparison.json").read_text())["difference"] for run in (ours, theirs)
    ]
    assert spent[0] == spent[1]
