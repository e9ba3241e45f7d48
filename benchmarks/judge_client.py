"""The label stage over HTTP, whole: votes per CPU second of the process that labels.

    python -m benchmarks.judge_client [--prompts 400] [--connections 64 256 1000] [--repeats 3]
                                      [--api chat completions]

Four answers of 8 to 80 words for each prompt are made up; all pairs are judged in both orders by
the shipped judge ``pairwise``, at the defaults of a run: response cache, ledger and shards on disk.
The server is another process on this machine that reads each request whole and answers at once
with a verdict and twenty log-probabilities, as vLLM's chat API writes them (some 1.7 kB). It says
nothing about models; what is measured is what labelling costs around them. Its own processor time
is not counted; where it is the slower one, CPU seconds tell, and not the clock. Each figure is the
median of ``--repeats`` runs, each in a process of its own, with the least and the most.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from benchmarks.scale import LARGE, make_up
from prefloop.data.embedded import resolve_embedded
from prefloop.data.shards import ShardFolder
from prefloop.pipeline.run.context import RunContext
from prefloop.pipeline.run.run_dir import RunDir

PER_PROMPT = 4
TOP = ["A", "B", "C", *(f"w{index}" for index in range(17))]
LOGPROBS = [-0.2, -2.0, -4.0, *(-9.0 - index / 8 for index in range(17))]


def answer(prompts: Sequence[Sequence[int]]) -> bytes:
    """vLLM's completions response to ``prompts``."""
    top = dict(zip(TOP, LOGPROBS, strict=True))
    said = {"tokens": ["A"], "token_logprobs": [-0.2], "top_logprobs": [top], "text_offset": [0]}
    choices = [
        {
            "index": index, "text": "A", "logprobs": said, "finish_reason": "length",
            "stop_reason": None, "token_ids": [65], "prompt_token_ids": prompt,
        }
        for index, prompt in enumerate(prompts)
    ]  # fmt: skip
    return _body(choices, sum(map(len, prompts)))


@cache
def chat_answer() -> bytes:
    """vLLM's chat response to any conversation."""
    seen = [
        {"token": token, "logprob": value, "bytes": list(token.encode())}
        for token, value in zip(TOP, LOGPROBS, strict=True)
    ]
    choice = {
        "index": 0, "message": {"role": "assistant", "content": "A", "tool_calls": []},
        "logprobs": {"content": [{**seen[0], "top_logprobs": seen}]},
        "finish_reason": "length", "stop_reason": None,
    }  # fmt: skip
    return _body([choice], 500)


def _body(choices: Sequence[dict[str, Any]], prompt_tokens: int) -> bytes:
    count = len(choices)
    usage = {
        "prompt_tokens": prompt_tokens,
        "total_tokens": prompt_tokens + count,
        "completion_tokens": count,
    }
    body = {"id": "cmpl-1", "object": "x", "created": 1, "model": "judge", "choices": choices}
    return json.dumps({**body, "usage": usage}).encode()


class Answering(asyncio.Protocol):
    """One connection: answers each request once it has come whole."""

    def __init__(self) -> None:
        self._came = bytearray()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See ``asyncio.Protocol``."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        """See ``asyncio.Protocol``."""
        self._came += data
        while (end := self._came.find(b"\r\n\r\n")) >= 0:
            head = bytes(self._came[:end]).lower()
            length = int(head.partition(b"content-length:")[2].partition(b"\r\n")[0] or 0)
            if len(self._came) < end + 4 + length:
                return
            body = bytes(self._came[end + 4 : end + 4 + length])
            del self._came[: end + 4 + length]
            is_chat = b"/chat/" in head.partition(b"\r\n")[0]
            said = chat_answer() if is_chat else answer(_prompts_in(body))
            about = (
                b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"
            )
            self.say(about % len(said) + said)

    def say(self, data: bytes) -> None:
        """Send an answer."""
        self._transport.write(data)


def _prompts_in(body: bytes) -> list[list[int]]:
    prompt = json.loads(body)["prompt"]
    return prompt if isinstance(prompt[0], list) else [prompt]


async def serve() -> None:
    """Answer until killed; the port is printed first."""
    server = await asyncio.get_running_loop().create_server(Answering, "127.0.0.1", 0, backlog=4096)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


@contextmanager
def answering_server() -> Iterator[str]:
    """The server in a process of its own; its base URL."""
    command = [sys.executable, "-m", "benchmarks.judge_client", "--serve"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            yield f"http://127.0.0.1:{process.stdout.readline().strip()}/v1"
        finally:
            process.kill()


def settings(folder: Path, url: str, api: str, connections: int) -> dict[str, Any]:
    """A config with everything at its default but the server and the number of requests."""
    engine: dict[str, Any] = {"type": "openai", "base_url": url, "api": api}
    engine["max_concurrency"] = connections
    if api == "completions":
        engine |= {"tokenizer": resolve_embedded("embedded:judge"), "vllm_extensions": True}
    return {
        "run_dir": str(folder),
        "prompts": {"train": {"path": "made-up.jsonl"}},
        "engines": {"default": {"type": "transformers"}, "judges": engine},
        "label": {"labelers": [{"type": "judge", "model": "judge", "engine": "judges"}]},
    }


def measure(config: dict[str, Any]) -> dict[str, float]:
    """Label what lies in the run directory; CPU and clock seconds, and how many votes."""
    from prefloop.pipeline.config import validate_config
    from prefloop.pipeline.run.models import Models
    from prefloop.pipeline.stages.label import label_round

    checked = validate_config(config, "benchmark")
    run = RunDir(Path(config["run_dir"]))
    context = RunContext.of(checked, run).round(0)

    async def go() -> tuple[float, float]:
        models = Models(checked, cache=run.cache)
        try:
            labelers = await models.labelers(checked.label.labelers)

            async def opened() -> Any:
                return labelers

            cpu, clock = time.process_time(), time.perf_counter()
            await label_round(context, checked.label, opened)
            return time.process_time() - cpu, time.perf_counter() - clock
        finally:
            await models.release()

    cpu, clock = asyncio.run(go())
    votes = ShardFolder(run.round(0).votes.folder, run.round(0).votes.schema)
    table = votes.table(["preference"])
    assert set(table["preference"].to_pylist()) <= {"a", "b"}, "some votes are invalid"
    return {"cpu": cpu, "clock": clock, "votes": len(table)}


def main() -> None:
    """Measure each API at each number of connections."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--prompts", type=int, default=400)
    parser.add_argument("--connections", type=int, nargs="+", default=[64, 256, 1000])
    parser.add_argument("--api", nargs="+", default=["chat"], choices=["chat", "completions"])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        asyncio.run(serve())
        return
    if options.measure:
        print(json.dumps(measure(json.loads(options.measure))))
        return
    print(f"load {os.getloadavg()[0]:.2f}")
    print(f"{'api':<12} {'connections':>11} {'votes/CPU-s':>24} {'votes/s':>8} {'votes':>7}")
    with answering_server() as url:
        for api in options.api:
            for connections in options.connections:
                report(api, connections, [
                    once(options.prompts, url, api, connections) for _ in range(options.repeats)
                ])  # fmt: skip


def once(prompts: int, url: str, api: str, connections: int) -> dict[str, float]:
    """One measurement, in a process and a run directory of its own."""
    with tempfile.TemporaryDirectory() as folder:
        make_up(RunDir(Path(folder)), prompts * PER_PROMPT, LARGE)
        RunDir(Path(folder)).round(0).votes.remove()
        config = json.dumps(settings(Path(folder), url, api, connections))
        command = [sys.executable, "-m", "benchmarks.judge_client", "--measure", config]
        done = subprocess.run(command, stdout=subprocess.PIPE, check=True)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def report(api: str, connections: int, found: list[dict[str, float]]) -> None:
    """One line of the table."""
    rates = sorted(one["votes"] / one["cpu"] for one in found)
    clock = statistics.median(one["votes"] / one["clock"] for one in found)
    shown = f"{statistics.median(rates):,.0f} ({rates[0]:,.0f} to {rates[-1]:,.0f})"
    print(
        f"{api:<12} {connections:>11} {shown:>24} {clock:>8,.0f} {found[0]['votes']:>7}", flush=True
    )


if __name__ == "__main__":
    main()
