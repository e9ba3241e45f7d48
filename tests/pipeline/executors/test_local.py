"""Blocks in flight: bounded, in order, and errors that leave nothing running; and no Ray."""

import asyncio
import json
import subprocess
import sys
from pathlib import Path

import pytest

from prefloop.pipeline.executors.local import run_blocks
from tests.helpers.paths import ROOT

WITHOUT_RAY = """
import sys, prefloop
assert "ray" not in sys.modules
verifier = {"type": "verifier", "function": "tests.helpers.served:letters"}
config = {"sample": {"from": {"path": sys.argv[1]}}, "label": {"labelers": [verifier]},
          "filter": {"filters": [], "strategy": {"type": "all"}}}
run = prefloop.run(config, run_dir=sys.argv[2])
assert len(run.load_dataset("train")) > 3
sys.exit(", ".join(name for name in sys.modules if name.partition(".")[0] == "ray") or None)
"""


def test_all_blocks_run_and_never_more_than_allowed_at_once() -> None:
    running, most, done = 0, 0, []

    async def work(block: int) -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0.001 * (block % 3))
        running -= 1
        done.append(block)

    asyncio.run(run_blocks(range(20), work, in_flight=3))
    assert sorted(done) == list(range(20))
    assert most == 3


def test_the_next_block_begins_before_a_slow_one_has_ended() -> None:
    order = []

    async def work(block: int) -> None:
        order.append(("begin", block))
        await asyncio.sleep(0.05 if block == 0 else 0.001)
        order.append(("end", block))

    asyncio.run(run_blocks(range(3), work, in_flight=2))
    assert order.index(("begin", 2)) < order.index(("end", 0))


def test_an_error_is_raised_and_cancels_what_is_in_flight() -> None:
    ended = []

    async def work(block: int) -> None:
        if block == 1:
            raise ValueError("block 1")
        await asyncio.sleep(10)
        ended.append(block)

    with pytest.raises(ValueError, match="block 1"):
        asyncio.run(asyncio.wait_for(run_blocks(range(5), work, in_flight=3), timeout=5))
    assert ended == []


def test_a_run_in_one_process_imports_no_ray(tmp_path: Path) -> None:
    answers = tmp_path / "answers.jsonl"
    rows = [{"prompt": f"Number {n}?", "responses": [f"a{n}", f"it is {n}"]} for n in range(8)]
    answers.write_text("\n".join(map(json.dumps, rows)))
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_RAY, str(answers), str(tmp_path / "run")],
        capture_output=True, text=True, cwd=ROOT, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
