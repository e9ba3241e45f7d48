"""Is an engine kept full where a few answers take ten times as long as the others?

    python -m benchmarks.kept_full [--slots 256 1024] [--prompts 2048] [--answer-s 0.5]
                                   [--repeats 3]
    python -m benchmarks.kept_full --vllm [--slots 64] [--prompts 256] [--tokens 16]

A server in another process works on so many requests together as it has slots (the others wait),
and takes ``--answer-s`` for an answer, ten times as long for one in twenty, by the request's seed.
Four samples of each prompt are drawn from it by the sample stage, at the defaults of a run but for
``max_concurrency``, which is the server's slots, and the response cache, which is off: with two
blocks in flight, with as many as the engine has room for (the default), and with all at once, in
turn. The time is the server's, as nothing here computes; medians of ``--repeats``.

With ``--vllm``, the same from vLLM in this process (its CPU build where there is no GPU), whose
answers have ``--tokens``, or ten times as many. Compared is how many of its slots are in use at a
step: a step of a GPU takes as long for few as for many, and one of a CPU does not.
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
from unittest import mock

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


def on_server(url: str, slots: int) -> dict[str, Any]:
    """What a config says of the server."""
    served = {"type": "openai", "base_url": url, "max_concurrency": slots, "cache": False,
              "logprobs": False}  # fmt: skip
    return {"policy": "m", "engines": {"default": served}}


class Steps:
    """Counts what vLLM does; the engines that are started meanwhile tell it."""

    def __init__(self) -> None:
        self.steps = self.running = 0

    @property
    def filled(self) -> float:
        """Sequences that a step decodes."""
        return self.running / max(self.steps, 1)

    def record(self, scheduler: Any, iteration: Any, *_: Any, **__: Any) -> None:
        """A step of the engine."""
        if scheduler is not None and iteration is not None and iteration.num_generation_tokens:
            self.steps += 1
            self.running += iteration.num_generation_tokens

    def log_engine_initialized(self) -> None:
        """See vLLM's ``StatLoggerBase``."""

    def log(self) -> None:
        """See vLLM's ``StatLoggerBase``."""


@contextmanager
def uneven_vllm(tokens: int) -> Iterator[Steps]:
    """vLLM gives answers of ``tokens``, or, to one seed in twenty, ten times as many."""
    from vllm.v1.engine.async_llm import AsyncLLM

    from prefloop.pipeline.engines import vllm_engine

    counted, start, asked = Steps(), AsyncLLM.from_engine_args, vllm_engine._sampling_params

    def watched(args: Any) -> AsyncLLM:
        args.disable_log_stats = False
        return start(args, stat_loggers=[lambda *_: counted])

    def uneven(request: Any, seed: int, *more: Any) -> Any:
        made = asked(request, seed, *more)
        made.max_tokens = tokens * (1 if seed % ONE_IN else LONG)
        made.ignore_eos, made.stop_token_ids = True, []
        return made

    with (
        mock.patch.object(AsyncLLM, "from_engine_args", watched),
        mock.patch.object(vllm_engine, "_sampling_params", uneven),
    ):
        yield counted


def in_vllm(slots: int) -> dict[str, Any]:
    """What a config says of vLLM."""
    here = {"type": "vllm", "max_num_seqs": slots}
    return {"policy": "embedded:policy", "engines": {"default": here}}


def sample(models: dict[str, Any], prompts: int, blocks: int | None) -> tuple[float, pa.Table]:
    """Seconds of the sample stage, and what it drew; ``models``: policy and engines."""
    from prefloop.pipeline.config import validate_config
    from prefloop.pipeline.loop import take_up
    from prefloop.pipeline.run.run_dir import RunDir
    from prefloop.pipeline.stages.prompts import draw_prompts
    from prefloop.pipeline.stages.sample import sample_round

    with tempfile.TemporaryDirectory() as folder:
        asked = Path(folder) / "prompts.jsonl"
        asked.write_text("".join(f'{{"prompt": "What is {at}?"}}\n' for at in range(prompts)))
        raw: dict[str, Any] = {
            **models,
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


def measure_server(slots: int, prompts: int, answer_s: float, repeats: int) -> list[float]:
    """Answers a second, of each of :data:`WAYS`."""
    seconds: dict[str, list[float]] = {way: [] for way in WAYS}
    first: pa.Table | None = None
    with slow_server(slots, answer_s) as url:
        for _ in range(repeats):
            for way, blocks in WAYS.items():
                took, drawn = sample(on_server(url, slots), prompts, blocks)
                seconds[way].append(took)
                first = drawn if first is None else first
                assert drawn.equals(first), "the same seeds gave other candidates"
    return [prompts * N / statistics.median(times) for times in seconds.values()]


def measure_vllm(slots: int, prompts: int, tokens: int) -> list[float]:
    """Sequences that a step decodes, of each of :data:`WAYS`."""
    found, work = [], set[int]()
    for blocks in WAYS.values():
        with uneven_vllm(tokens) as counted:
            sample(in_vllm(slots), prompts, blocks)
        work.add(counted.running)
        found.append(counted.filled)
    assert len(work) == 1, "the same seeds gave other lengths"
    return found


def main() -> None:
    """Measure each way at each number of slots."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--vllm", action="store_true")
    parser.add_argument("--slots", type=int, nargs="+", help="256 and 1024; with --vllm 64")
    parser.add_argument("--prompts", type=int, help="2048; with --vllm 256")
    parser.add_argument("--answer-s", type=float, default=0.5)
    parser.add_argument("--tokens", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--serve", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        asyncio.run(serve(int(options.serve[0]), float(options.serve[1])))
        return
    unit = "sequences a step" if options.vllm else "answers/s"
    heads = ["slots", *(f"{way}, {unit}" for way in WAYS)]
    heads += ["**default to all at once** (goal: at least 0.95)", "two blocks to all at once"]
    print("| " + " | ".join(heads) + " |")
    print("| --- " * len(heads) + "|")
    for slots in options.slots or ([64] if options.vllm else [256, 1024]):
        if options.vllm:
            rates = measure_vllm(slots, options.prompts or 256, options.tokens)
        else:
            prompts = options.prompts or 2048
            rates = measure_server(slots, prompts, options.answer_s, options.repeats)
        two, default, whole = rates
        digits = 1 if options.vllm else 0
        cells = [f"{slots:,}", *(f"{rate:,.{digits}f}" for rate in rates)]
        cells += [f"**{default / whole:.2f}**", f"{two / whole:.2f}"]
        print("| " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
