"""Several servers that misbehave behind one engine, against one engine on one of them.

    python -m benchmarks.endpoints [--requests 2000] [--alone 400] [--repeats 3]

Five servers in another process answer a plain question after 0.1 s, each in its own way: one takes
8 requests at a time and refuses the others (429), one takes 1 s for each answer, one refuses
everybody for 1 s of 4, one closes its port after 2 s for 3 s, and one is not there at all. Measured
are answers a second of (1) an engine with ``base_url`` on the capped server, 32 requests at once,
with as many retries as it wants; (2) an engine with that server as its only endpoint; (3) one with
all five. Every request must be answered, and each by one server once. Medians of ``--repeats``, in
turn, with the least and the most.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

CAP, QUICK_S, SLOW_S = 8, 0.1, 1.0
WAYS = ("capped", "slow", "stormy", "reborn", "dead")
SAID = json.dumps(
    {
        "choices": [{"message": {"content": "yes"}, "finish_reason": "stop", "logprobs": None}],
        "usage": {"prompt_tokens": 10, "completion_tokens": 5},
    }
).encode()
FULL = b'{"error": {"message": "too many requests", "type": "rate_limit_error"}}'


class Server:
    """One of the five; ``began`` is when the measurement did, which its moods go by."""

    def __init__(self, way: str) -> None:
        self.way = way
        self.answered: Counter[str] = Counter()
        self.refused = self.under_way = 0
        self.began = 0.0
        self.port = 0
        self._listening: asyncio.Server | None = None
        self._open: set[asyncio.StreamWriter] = set()

    async def start(self) -> None:
        """Listen, at the port that it had before."""
        self._listening = await asyncio.start_server(
            self._serve, "127.0.0.1", self.port, backlog=1024
        )
        self.port = self._listening.sockets[0].getsockname()[1]

    async def die(self) -> None:
        """Close the port, and every connection in the middle of whatever it is at."""
        assert self._listening is not None
        self._listening.close()
        for writer in list(self._open):
            writer.transport.abort()

    def begin(self) -> None:
        """A new measurement."""
        self.answered.clear()
        self.refused, self.began = 0, time.monotonic()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._open.add(writer)
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                length = int(head.lower().partition(b"content-length:")[2].split(b"\r\n")[0] or 0)
                body = await reader.readexactly(length)
                if head.startswith(b"GET"):
                    await self._write(writer, 404, b"{}")
                else:
                    await self._answer(writer, json.loads(body)["messages"][-1]["content"])
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            self._open.discard(writer)
            writer.close()

    async def _answer(self, writer: asyncio.StreamWriter, prompt: str) -> None:
        storms = self.way == "stormy" and (time.monotonic() - self.began) % 4 > 3
        if storms or (self.way == "capped" and self.under_way >= CAP):
            self.refused += 1
            await self._write(writer, 429, FULL)
            return
        self.under_way += 1
        try:
            await asyncio.sleep(SLOW_S if self.way == "slow" else QUICK_S)
        finally:
            self.under_way -= 1
        if not writer.transport.is_closing():
            self.answered[prompt] += 1
            await self._write(writer, 200, SAID)

    async def _write(self, writer: asyncio.StreamWriter, status: int, body: bytes) -> None:
        head = b"HTTP/1.1 %d x\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"
        writer.write(head % (status, len(body)) + body)
        await writer.drain()


async def serve() -> None:
    """Run the servers until told to end. Lines of stdin begin a measurement (``begin``) or ask for
    what happened (``tell``); the ports are printed first."""
    servers = [Server(way) for way in WAYS if way != "dead"]
    for server in servers:
        await server.start()
    nobody = Server("dead")
    await nobody.start()
    await nobody.die()
    print(json.dumps({one.way: one.port for one in (*servers, nobody)}), flush=True)
    reborn = next(one for one in servers if one.way == "reborn")
    life: asyncio.Task[None] | None = None

    async def die_and_be_born() -> None:
        await asyncio.sleep(2)
        await reborn.die()
        await asyncio.sleep(3)
        await reborn.start()

    while line := await asyncio.to_thread(sys.stdin.readline):
        if line.strip() == "begin":
            if life is not None:
                await life
            for server in servers:
                server.begin()
            life = asyncio.create_task(die_and_be_born())
            print("{}", flush=True)
        else:
            told = {one.way: [dict(one.answered), one.refused] for one in servers}
            print(json.dumps(told), flush=True)


class Servers:
    """The servers' process."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        self.urls = {way: f"http://127.0.0.1:{port}/v1" for way, port in self._read().items()}

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        return dict(json.loads(self._process.stdout.readline()))

    def told(self, line: str) -> dict[str, Any]:
        """What they say to ``line``."""
        assert self._process.stdin is not None
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()
        return self._read()


@contextmanager
def servers() -> Iterator[Servers]:
    """The five, in a process of their own."""
    command = [sys.executable, "-m", "benchmarks.endpoints", "--serve"]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as process:
        try:
            yield Servers(process)
        finally:
            process.kill()


async def ask(settings: Mapping[str, Any], number: int) -> tuple[float, float]:
    """Clock and CPU seconds for ``number`` requests at once."""
    from prefloop.data.protocol import Request, Sampling
    from prefloop.pipeline.engines.openai.openai_server import OpenAIServer
    from prefloop.pipeline.engines.settings import OpenAIEngine

    engine = OpenAIServer(OpenAIEngine(**settings, cache=False), "m")
    asked = [
        Request(str(at), ({"role": "user", "content": str(at)},), Sampling(max_tokens=5), (1,))
        for at in range(number)
    ]
    try:
        clock, cpu = time.perf_counter(), time.process_time()
        answers = await asyncio.gather(*(engine.generate(one) for one in asked))
        found = time.perf_counter() - clock, time.process_time() - cpu
        assert [each[0].text for each in answers] == ["yes"] * number
    finally:
        await engine.aclose()
    return found


def once(there: Servers, settings: Mapping[str, Any], number: int) -> dict[str, float]:
    """One measurement: answers a second, and what the servers did for it."""
    there.told("begin")
    clock, cpu = asyncio.run(ask(settings, number))
    told = there.told("tell")
    paid = sum((Counter(answered) for answered, _ in told.values()), Counter())
    return {
        "rate": number / clock,
        "cpu_ms": 1000 * cpu / number,
        "refused": sum(refused for _, refused in told.values()) / number,
        "twice": sum(count - 1 for count in paid.values()) + (number - len(paid)),
    }


def main() -> None:
    """Measure the three engines in turn."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=2000, help="over all endpoints")
    parser.add_argument("--alone", type=int, default=400, help="on the capped server alone")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        asyncio.run(serve())
        return
    with servers() as there:
        capped = there.urls["capped"]
        engines: dict[str, tuple[dict[str, Any], int]] = {
            "base_url, static": ({"base_url": capped, "max_retries": 100}, options.alone),
            "one endpoint": ({"endpoints": [{"base_url": capped}]}, options.alone),
            "five endpoints": (
                {"endpoints": [{"base_url": there.urls[way]} for way in WAYS]}, options.requests
            ),
        }  # fmt: skip
        found: dict[str, list[dict[str, float]]] = {name: [] for name in engines}
        print(f"load {os.getloadavg()[0]:.2f}", flush=True)
        for _ in range(options.repeats):
            for name, (settings, number) in engines.items():
                found[name].append(once(there, settings, number))
    report(found)


def report(found: Mapping[str, list[dict[str, float]]]) -> None:
    """The table, and how the engines compare."""
    print("| engine | answers/s | refused, per request | more than once | CPU ms a request |")
    print("| --- | --- | --- | --- | --- |")
    rates = {}
    for name, each in found.items():
        sorted_rates = sorted(one["rate"] for one in each)
        rates[name] = statistics.median(sorted_rates)
        refused, cpu = (
            statistics.median(one[key] for one in each) for key in ("refused", "cpu_ms")
        )
        twice = sum(one["twice"] for one in each)
        span = f"{rates[name]:.1f} ({sorted_rates[0]:.1f} to {sorted_rates[-1]:.1f})"
        print(f"| {name} | {span} | {refused:.3f} | {twice:.0f} | {cpu:.2f} |")
    static = rates["base_url, static"]
    print(
        f"one endpoint {rates['one endpoint'] / static:.1f} times, "
        f"five {rates['five endpoints'] / static:.1f} times the static engine"
    )


if __name__ == "__main__":
    main()
