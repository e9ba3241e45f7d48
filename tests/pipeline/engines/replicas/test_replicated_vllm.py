"""Several vLLM engines for real; they take minutes to start on a few cores."""

from __future__ import annotations

import asyncio
import importlib.util
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from prefloop.data.protocol import Request, Sampling
from prefloop.pipeline.engines.factory import build_engine
from prefloop.pipeline.engines.policy_check import verify_policy
from prefloop.pipeline.engines.replicas.replicated import ReplicatedVllm
from prefloop.pipeline.engines.settings import VllmEngine
from tests.helpers.engine_models import make_adapter, make_model

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.slow,
    pytest.mark.skipif(
        importlib.util.find_spec("vllm") is None,
        reason="vLLM is not installed (pip install 'prefloop[cpu]' or 'prefloop[vllm]')",
    ),
]
CHAT = ({"role": "user", "content": "Write one sentence about a fox."},)


def group(leader: int) -> dict[int, str]:
    """The processes of a process group, and what they were started as."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
            if int(fields[2]) == leader and fields[0] != "Z":
                found[int(folder.name)] = (folder / "cmdline").read_text().replace("\0", " ")
        except OSError:
            continue
    return found


@pytest.mark.timeout(1800)
def test_two_serve_a_policy_and_a_dead_core_is_replaced(tmp_path: Path) -> None:
    base = make_model(tmp_path / "base")
    adapter = make_adapter(tmp_path / "adapter", base)
    asked = [
        Request(f"r{at}", CHAT, Sampling(max_tokens=100), (at, 50 + at), block=f"b{at // 4}",
                block_size=4)
        for at in range(16)
    ]  # fmt: skip

    async def go() -> None:
        config = VllmEngine(replicas=2, enable_lora=True, max_lora_rank=8, max_num_seqs=16)
        engine: Any = await build_engine(config, base)
        leaders = [replica.pid for replica in engine.replicas]
        try:
            assert isinstance(engine, ReplicatedVllm)
            assert engine.supports_json_schema
            engine.check_by(lambda one: verify_policy(one, adapter, [CHAT]))
            await engine.load_policy(adapter)
            assert await verify_policy(engine, adapter, [CHAT], previous=base) < 1e-3
            work = asyncio.gather(*(engine.generate(one) for one in asked))
            first = engine.replicas[0]
            [core] = [pid for pid, what in group(first.pid).items() if "EngineCore" in what]
            os.kill(core, signal.SIGKILL)
            answers = await work
            assert [len(one) for one in answers] == [2] * 16
            while len(engine.replicas) < 2:
                await asyncio.sleep(0.1)
            assert first not in engine.replicas
            assert await verify_policy(engine, adapter, [CHAT], previous=base) < 1e-3
            leaders += [replica.pid for replica in engine.replicas]
        finally:
            await engine.aclose()
        async with asyncio.timeout(60):  # what was killed takes a moment to be gone
            while any(group(leader) for leader in leaders):
                await asyncio.sleep(0.1)

    asyncio.run(go())
