"""Blocks in flight: bounded, in order, and errors that leave nothing running; and no Ray."""

import asyncio
import json
import subprocess
import sys
from pathlib import Path

import pytest

from prefloop.pipeline.executors.local import Admission, run_blocks
from prefloop.pipeline.machine.engine_load import EngineLoads
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


async def _flow(blocks: int, *, long: int, capacity: int, most: int) -> tuple[list[int], list[int]]:
    """Blocks of four requests through an engine of ``capacity``, the last of each block ``long``
    times as long; how many blocks and how many requests were under way as each began."""
    loads, slots = EngineLoads(), asyncio.Semaphore(capacity)
    open_blocks, under_way, at_begin, busy = 0, 0, [], []

    async def request(steps: int) -> None:
        nonlocal under_way
        with loads.carrying("engine", capacity, 1):
            async with slots:
                under_way += 1
                busy.append(under_way)
                for _ in range(steps):
                    await asyncio.sleep(0)
                under_way -= 1

    async def work(block: int) -> None:
        nonlocal open_blocks
        open_blocks += 1
        at_begin.append(open_blocks)
        for _ in range(block % 3):  # the requests come later
            await asyncio.sleep(0)
        await asyncio.gather(*(request(20 * (long if at == 3 else 1)) for at in range(4)))
        open_blocks -= 1

    await run_blocks(range(blocks), work, in_flight=2, admission=Admission(loads, most))
    return at_begin, busy


def test_further_blocks_begin_where_an_engine_would_run_dry() -> None:
    at_begin, busy = asyncio.run(_flow(40, long=10, capacity=16, most=30))
    # Three of four requests of a block are over when the fourth has just begun.
    assert max(at_begin) > 8
    middle = busy[len(busy) // 4 : -len(busy) // 4]
    assert min(middle) >= 12
    only_two, idle = asyncio.run(_flow(40, long=10, capacity=16, most=2))
    assert max(only_two) == 2
    assert max(idle) <= 8


def test_no_more_blocks_than_fill_the_engine_and_never_more_than_most() -> None:
    at_begin, _ = asyncio.run(_flow(40, long=1, capacity=16, most=30))
    assert max(at_begin) <= 9  # eight of four requests each are twice sixteen, and one begins
    at_begin, _ = asyncio.run(_flow(40, long=10, capacity=64, most=5))
    assert max(at_begin) == 5
    at_begin, _ = asyncio.run(_flow(40, long=10, capacity=1, most=30))
    assert max(at_begin) == 2


def test_a_block_waits_for_the_slowest_engine_and_not_for_others() -> None:
    loads = EngineLoads()
    assert not loads.has_room  # nobody asks: who knows what a further block would wait for
    with loads.carrying("judge", 100, 30):
        assert loads.has_room
        with loads.carrying("reward model", 1, 1):
            assert loads.has_room
            with loads.carrying("reward model", 1, 1):
                assert not loads.has_room
        with loads.carrying("judge", 100, 170):
            assert not loads.has_room
        assert loads.has_room


def test_blocks_that_ask_nobody_are_two() -> None:
    running, most = 0, 0
    loads = EngineLoads()

    async def work(block: int) -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0.001)
        running -= 1

    asyncio.run(run_blocks(range(10), work, in_flight=2, admission=Admission(loads, 64)))
    assert most == 2
