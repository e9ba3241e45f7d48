"""From the end of a training to the first new sample: weights swapped into the running engine,
against starting a new one.

    python -m benchmarks.turnover [--width 512] [--layers 8] [--repeats 3] [--gpu]

Swapped: ``prefloop.pipeline.run.models.Models`` as in a run: the engine takes the new weights (a
LoRA adapter for vLLM; whole weights for transformers, and for vLLM with ``--gpu``), its
log-probabilities are compared with transformers on the same checkpoint, and it answers. Anew: the
engine is closed and another is started on the new weights in the same process, and answers; no
check, no imports. In a process of its own, as where each round is a script: imports too. The policy
is a Llama with random weights, and each repeat brings new ones.
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
from pathlib import Path
from typing import Any

from benchmarks.models import make_model
from prefloop.data.protocol import Engine, Request, Sampling
from prefloop.pipeline.config import RunConfig, validate_config
from prefloop.pipeline.engines.factory import build_engine
from prefloop.pipeline.run.models import Models
from tests.helpers.engine_models import make_adapter

PROBES = [({"role": "user", "content": f"Write one sentence about {word}."},) for word in
          ("a fox", "the sea", "a lamp", "winter")]  # fmt: skip


def config_of(policy: str, engine: dict[str, Any]) -> RunConfig:
    """A run that samples from ``policy`` with ``engine``."""
    return validate_config(
        {
            "policy": policy,
            "engines": {"default": engine},
            "prompts": {"train": {"path": "embedded:prompts"}},
            "label": {"labelers": [{"type": "verifier"}]},
        },
        "turnover",
    )


REQUEST = Request("first", PROBES[0], Sampling(max_tokens=1), seeds=(0,))


async def swap(models: Models, policy: str) -> None:
    """Give the running engine ``policy``, check it, and wait for one answer."""
    models.use_policy(policy)
    engine = await models.engine("default", "policy")
    await engine.generate(REQUEST)


async def start(base: str, policy: str, settings: dict[str, Any]) -> Engine:
    """Start an engine on ``policy``, or on ``base`` where that is an adapter, and wait for one
    answer."""
    config = config_of(base, settings).engines["default"]
    engine = await build_engine(config, base if is_lora(policy) else policy)
    if is_lora(policy):
        await engine.load_policy(policy)
    await engine.generate(REQUEST)
    return engine


async def measure(
    base: str, policies: list[str], settings: dict[str, Any]
) -> tuple[list[float], list[float]]:
    """Seconds of each swap, and of each new engine."""
    models = Models(config_of(base, settings))
    models.probes = list(PROBES)
    await swap(models, base)
    swaps, news = [], []
    for policy in policies:
        began = time.perf_counter()
        await swap(models, policy)
        swaps.append(time.perf_counter() - began)
    await models.release()
    for policy in policies:
        began = time.perf_counter()
        engine = await start(base, policy, settings)
        news.append(time.perf_counter() - began)
        await engine.aclose()
    return swaps, news


def is_lora(policy: str) -> bool:
    """Whether the folder is an adapter."""
    return (Path(policy) / "adapter_config.json").is_file()


def in_own_process(policy: str, base: str, engine: dict[str, Any]) -> float:
    """Seconds until a new Python process has its first sample of ``policy``."""
    code = (
        "import asyncio, json, sys; from benchmarks.turnover import start\n"
        "async def go():\n"
        "    engine = await start(sys.argv[1], sys.argv[2], json.loads(sys.argv[3]))\n"
        "    print('SAMPLED', flush=True)\n"
        "    await engine.aclose()\n"
        "asyncio.run(go())\n"
    )
    arguments = [base, policy, json.dumps(engine)]
    began = time.perf_counter()
    with subprocess.Popen(
        [sys.executable, "-c", code, *arguments], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        text=True,
    ) as process:  # fmt: skip
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("SAMPLED"):
                return time.perf_counter() - began
    raise SystemExit("the new process gave no sample")


def main() -> None:
    """Measure each engine and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--gpu", action="store_true", help="whole weights into vLLM too")
    given = parser.parse_args()
    vllm = {"type": "vllm", "max_model_len": 512}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_model(folder / "base", given.width, given.layers)
        base = str(folder / "base")
        adapters = [
            make_adapter(folder / f"lora-{seed}", base, seed=seed) for seed in range(given.repeats)
        ]
        whole = []
        for seed in range(given.repeats):
            target = folder / f"whole-{seed}"
            make_model(target, given.width, given.layers, seed=seed + 1)
            whole.append(str(target))
        sides = [
            ("transformers, whole weights", {"type": "transformers"}, whole),
            ("vLLM, LoRA", {**vllm, "enable_lora": True}, adapters),
        ]
        if given.gpu:
            sides.append(("vLLM, whole weights", vllm, whole))
        print("| engine | swapped, s | new engine, s | new process, s | ratio | ratio, process |")
        print("| --- | --- | --- | --- | --- | --- |")
        for title, engine, policies in sides:
            swaps, news = asyncio.run(measure(base, policies, engine))
            alone = in_own_process(policies[0], base, engine)
            swapped, new = statistics.median(swaps), statistics.median(news)
            cells = [f"{swapped:.2f}", f"{new:.2f}", f"{alone:.2f}", f"**{new / swapped:.1f}**",
                     f"**{alone / swapped:.1f}**"]  # fmt: skip
            print("|", " | ".join([title, *cells]), "|", flush=True)


if __name__ == "__main__":
    main()
