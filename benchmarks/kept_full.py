"""Is an engine kept full where a few answers take ten times as long as the others?

    python -m benchmarks.kept_full [--slots 256 1024] [--prompts 2048] [--answer-s 0.5]
                                   [--repeats 3]

A server in another process works on so many requests together as it has slots (the others wait),
and takes ``--answer-s`` for an answer, ten times as long for one in twenty, by the request's seed.
Four samples of each prompt are drawn from it by the sample stage, at the defaults of a run but for
``max_concurrency``, which is the server's slots, and the response cache, which is off: with two
blocks in flight, with as many as the engine has room for (the default), and with all at once, in
turn. The time is the server's, as nothing here computes; medians of ``--repeats``.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa

N = 4
LONG, ONE_IN = 10, 20
WAYS: dict[str, int | None] = {"two blocks": 2, "the default": None, "all at once": 10_000}


async def serve(slots: int, answer_s: float) -> None:
    """Answer until killed; the port is printed first."""
    free = asyncio.Semaphore(slots)

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                length = int(head.lower().partition(b"content-length:")[2].split(b"\r\n")[0] or 0)
                asked = json.loads(await reader.readexactly(length) or b"{}")
                seed = int(asked.get("seed", 0))
                async with free:
                    await asyncio.sleep(answer_s * (1 if seed % ONE_IN else LONG))
                said = {
                    "choices": [
                        {"message": {"content": f"answer {seed}"}, "finish_reason": "stop"}
                    ],
                    "usage": {"prompt_tokens": 10, "completion_tokens": 5},
                }
                body = json.dumps(said).encode()
                about = b"content-type: application/json\r\ncontent-length: %d" % len(body)
                writer.write(b"HTTP/1.1 200 OK\r\n" + about + b"\r\n\r\n" + body)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(talk, "127.0.0.1", 0, backlog=4096)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


@contextmanager
def slow_server(slots: int, answer_s: float) -> Iterator[str]:
    """The server in a process of its own; its base URL."""
    command = [sys.executable, "-m", "benchmarks.kept_full", "--serve", str(slots), str(answer_s)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            yield f"http://127.0.0.1:{process.stdout.readline().strip()}/v1"
        finally:
            process.kill()


def sample(url: str, slots: int, prompts: int, blocks: int | None) -> tuple[float, pa.Table]:
    """Seconds of the sample stage, and what it drew."""
    from prefloop.pipeline.config import validate_config
    from prefloop.pipeline.loop import take_up
    from prefloop.pipeline.run.run_dir import RunDir
    from prefloop.pipeline.stages.prompts import draw_prompts
    from prefloop.pipeline.stages.sample import sample_round

    with tempfile.TemporaryDirectory() as folder:
        asked = Path(folder) / "prompts.jsonl"
        asked.write_text("".join(f'{{"prompt": "What is {at}?"}}\n' for at in range(prompts)))
        raw: dict[str, Any] = {
            "policy": "m",
            "engines": {
                "default": {
                    "type": "openai", "base_url": url, "max_concurrency": slots, "cache": False,
                    "logprobs": False,
                },
            },
            "prompts": {"train": {"path": str(asked)}, "near_duplicates": {"enabled": False},
                        "heldout_share": 0.0},
            "sample": {"n": N},
            "label": {"labelers": [{"type": "reference"}]},
            "evaluate": {"enabled": False},
            "blocks_in_flight": blocks,
        }  # fmt: skip
        config = validate_config(raw, "benchmark")
        run = RunDir(Path(folder) / "run")

        async def go() -> float:
            with run.lock():
                checked, models, context = take_up(config, run)
                try:
                    work = context.round(0)
                    size = checked.block_size
                    drawn = draw_prompts(work, per_round=None, per_leg=None, block_size=size)
                    began = time.perf_counter()
                    await sample_round(work, checked.sample, models, drawn)
                    return time.perf_counter() - began
                finally:
                    await models.release()

        seconds = asyncio.run(go())
        return seconds, run.round(0).candidates.table()


def main() -> None:
    """Measure each way at each number of slots."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--slots", type=int, nargs="+", default=[256, 1024])
    parser.add_argument("--prompts", type=int, default=2048)
    parser.add_argument("--answer-s", type=float, default=0.5)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--serve", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        asyncio.run(serve(int(options.serve[0]), float(options.serve[1])))
        return
    heads = ["slots", *(f"{way}, answers/s" for way in WAYS)]
    heads += ["**default to all at once** (goal: at least 0.95)", "two blocks to all at once"]
    print("| " + " | ".join(heads) + " |")
    print("| --- " * len(heads) + "|")
    for slots in options.slots:
        seconds: dict[str, list[float]] = {way: [] for way in WAYS}
        first: pa.Table | None = None
        with slow_server(slots, options.answer_s) as url:
            for _ in range(options.repeats):
                for way, blocks in WAYS.items():
                    took, drawn = sample(url, slots, options.prompts, blocks)
                    seconds[way].append(took)
                    first = drawn if first is None else first
                    assert drawn.equals(first), "the same seeds gave other candidates"
        number = options.prompts * N
        rates = {way: number / statistics.median(times) for way, times in seconds.items()}
        two, default, whole = rates.values()
        cells = [f"{slots:,}", *(f"{rate:,.0f}" for rate in rates.values())]
        cells += [f"**{default / whole:.2f}**", f"{two / whole:.2f}"]
        print("| " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
