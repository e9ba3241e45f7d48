"""Whatever ends a run ends the processes of its engines."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.helpers.paths import ROOT

SCRIPT = """
import asyncio, sys
from prefloop.data.embedded import resolve_embedded
from prefloop.data.protocol import Request, Sampling
from prefloop.pipeline.engines.factory import build_engine
from prefloop.pipeline.engines.settings import TransformersEngine

async def go():
    engine = await build_engine(
        TransformersEngine(replicas=2, threads=1), resolve_embedded("embedded:policy")
    )
    print(*(replica.pid for replica in engine.replicas), flush=True)
    if sys.argv[1] == "closed":
        return
    asked = [{"role": "user", "content": "Go on."}]
    seeds = tuple(range(4000))
    one, two = (Request(str(at), tuple(asked), Sampling(max_tokens=300), seeds) for at in range(2))
    await asyncio.gather(engine.generate(one), engine.generate(two))

asyncio.run(go())
"""


def gone(pid: int) -> bool:
    """Whether the process is over; a zombie waits for its parent, and does nothing."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return True
    return state == "Z"


@pytest.mark.slow
@pytest.mark.parametrize("how", ["SIGKILL", "SIGTERM", "SIGINT", "forgotten"])
def test_nothing_is_left(how: str, tmp_path: Path) -> None:
    """``forgotten``: the program ends, and did not close its engine."""
    errors = tmp_path / "errors"
    with errors.open("wb") as file:
        process = subprocess.Popen(
            [sys.executable, "-c", SCRIPT, "closed" if how == "forgotten" else how],
            stdout=subprocess.PIPE, stderr=file, cwd=ROOT, text=True,
        )  # fmt: skip
    assert process.stdout is not None
    pids = [int(pid) for pid in process.stdout.readline().split()]
    assert len(pids) == 2, errors.read_text()
    if how != "forgotten":
        assert not any(map(gone, pids))
        os.kill(process.pid, signal.Signals[how])
    process.wait()
    deadline = time.monotonic() + 60
    while not all(map(gone, pids)) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert all(map(gone, pids))
    process.stdout.close()
