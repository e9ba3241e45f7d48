"""The command line as a user meets it: exit codes, one-line errors, help in no time."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

PREFLOOP = Path(sys.executable).parent / "prefloop"


def prefloop(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(PREFLOOP), *arguments],
        capture_output=True, text=True, check=False, env=os.environ | environment, timeout=300,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "nowhere.yaml"], "nowhere.yaml: no such file"),
        (["status", "/nowhere"], "is not a run directory"),
        (["report", "/nowhere"], "is not a run directory"),
        (["run"], "Missing argument"),
        (["frobnicate"], "No such command"),
    ],
)
def test_a_users_mistake_is_one_line_and_no_traceback(arguments: list[str], message: str) -> None:
    result = prefloop(*arguments)
    assert result.returncode != 0
    assert message in result.stderr
    assert "Traceback" not in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1


def test_what_is_piped_is_utf_8_whatever_the_locale(tmp_path: Path) -> None:
    data = tmp_path / "pairs.jsonl"
    row = {"prompt": "Wie heißt das?", "chosen": "Straße – ja, 道路", "rejected": "Weiß nicht"}
    data.write_text(json.dumps(row) + "\n", encoding="utf-8")
    command = [str(PREFLOOP), "audit", str(data)]
    environment = os.environ | {"PYTHONIOENCODING": "latin-1", "PYTHONUTF8": "0"}
    for option, said in (("--seed=0", "\xa0%"), ("--json", '"rows": 1'), ("--html", " · ")):
        done = subprocess.run(
            [*command, option], capture_output=True, check=False, env=environment, timeout=300
        )
        assert done.returncode == 0, done.stderr
        assert said in done.stdout.decode("utf-8")


def test_no_arguments_show_the_help() -> None:
    assert "Usage: prefloop" in prefloop().stdout + prefloop().stderr


def test_from_init_to_a_dataset_of_ones_own_prompts(tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    assert "prefloop.yaml" in prefloop("init", str(mine)).stdout
    config = str(mine / "prefloop.yaml")
    planned = json.loads(prefloop("plan", config, "--json").stdout)
    assert planned["prompts"]["kept"] + planned["prompts"]["heldout"] == 24
    result = prefloop("run", config, HF_HUB_OFFLINE="1")
    assert result.returncode == 0, result.stderr
    assert str(mine / "run" / "dataset") in result.stdout
    status = json.loads(prefloop("status", str(mine / "run"), "--json").stdout)
    assert status["state"] == "done"
    assert prefloop("report", str(mine / "run")).stdout.strip() == str(mine / "run" / "report.html")
    assert prefloop("status", str(mine / "run")).returncode == 0


_AS_A_THREAD_BEGINS = """
import os, signal, threading
from prefloop.pipeline.commands import app
signal.signal(signal.SIGTERM, app._interrupt)
app._PATIENCE_S = {patience}
try:
    with threading._active_limbo_lock:  # as Thread.start holds it
        os.kill(os.getpid(), signal.SIGTERM)
        while True:
            pass
except KeyboardInterrupt:
    while {stuck}:
        pass
    raise SystemExit(130)
"""


@pytest.mark.parametrize("stuck", [False, True])
def test_an_interrupt_while_a_thread_begins_ends_the_process(stuck: bool) -> None:
    code = _AS_A_THREAD_BEGINS.format(stuck=stuck, patience=1 if stuck else 60)
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 130
    assert ("the same command" in done.stderr) == stuck


def test_a_key_reaches_nothing_on_disk(tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    prefloop("init", str(mine))
    secret = "sk-very-secret-0123456789"
    result = prefloop("run", str(mine / "prefloop.yaml"), OPENAI_API_KEY=secret)
    assert result.returncode == 0, result.stderr
    for path in mine.rglob("*"):
        if path.is_file():
            assert secret.encode() not in path.read_bytes(), path
    assert secret not in result.stdout + result.stderr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_says_how_to_go_on(number: int, tmp_path: Path) -> None:
    prefloop("init", str(tmp_path))
    command = [str(PREFLOOP), "run", str(tmp_path / "prefloop.yaml"), "--set", "sample.n=64"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    journal = tmp_path / "run" / "journal.jsonl"  # its first line says that prompts were read
    while not journal.exists():
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(number)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130
    assert stderr.strip().splitlines()[-1] == (
        "prefloop: interrupted; the same command on the same directory goes on from here"
    )
    assert "Traceback" not in stderr
