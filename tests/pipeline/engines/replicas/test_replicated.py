"""An engine in several processes: the answers of one, whatever happens to a process.

Starting a process takes ten seconds, so the tests share one engine of two.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from prefloop.data.protocol import Completion, Engine, EngineFailed, Request, Sampling
from prefloop.pipeline.engines.factory import build_engine
from prefloop.pipeline.engines.policy_check import PolicyMismatch, verify_policy
from prefloop.pipeline.engines.replicas.replicated import (
    ATTEMPTS,
    ReplicatedTransformers,
    ReplicatedVllm,
)
from prefloop.pipeline.engines.settings import TransformersEngine
from prefloop.training.policy.logprobs import whole_of
from tests.helpers.engine_models import make_adapter, make_model

pytestmark = pytest.mark.slow
TWO = TransformersEngine(replicas=2, threads=1, batch_size=4)
ONE = TWO.model_copy(update={"replicas": 1})
CHAT = ({"role": "user", "content": "Write one sentence about a fox."},)


@pytest.fixture(scope="module")
def runner() -> Iterator[asyncio.Runner]:
    with asyncio.Runner() as runner:  # an engine belongs to one event loop
        yield runner


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    root = tmp_path_factory.mktemp("models")
    base = make_model(root / "base")
    return {
        "base": base,
        "other": make_model(root / "other", seed=1),
        "adapter": make_adapter(root / "adapter", base),
    }


@pytest.fixture(scope="module")
def engine(runner: asyncio.Runner, folders: dict[str, str]) -> Iterator[ReplicatedTransformers]:
    engine = runner.run(build_engine(TWO, folders["base"]))
    assert isinstance(engine, ReplicatedTransformers)
    pids = [replica.pid for replica in engine.replicas]
    assert len(set(pids)) == 2
    assert os.getpid() not in pids
    yield engine
    pids += [replica.pid for replica in engine.replicas]
    runner.run(engine.aclose())
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids)
    with pytest.raises(EngineFailed, match="closed"):
        runner.run(engine.generate(request("late", 0)))


def request(block: str, index: int, *, size: int = 1, **sampling: Any) -> Request:
    chat = ({"role": "user", "content": f"Write about fox {index}. " * (1 + index % 3)},)
    return Request(
        f"{block}-{index}", chat, Sampling(**{"max_tokens": 12, **sampling}), (index, 50 + index),
        ("A", "B"), block=block, block_size=size,
    )  # fmt: skip


def blocks(number: int, size: int = 5, **sampling: Any) -> list[Request]:
    return [
        request(f"b{block}", index, size=size, **sampling)
        for block in range(number)
        for index in range(size)
    ]


async def ask(engine: Engine, requests: list[Request]) -> list[Any]:
    return await asyncio.gather(*(engine.generate(one) for one in requests), return_exceptions=True)


async def in_one(
    folder: str, requests: list[Request], policy: str | None = None
) -> list[list[Completion]]:
    engine = await build_engine(ONE, folder)
    if policy:
        await engine.load_policy(policy)
    answers = await ask(engine, requests)
    await engine.aclose()
    return answers


async def until_two(engine: ReplicatedTransformers) -> None:
    """Wait until both processes are there."""
    while len(engine.replicas) < 2:
        await asyncio.sleep(0.05)


def kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)


def test_blocks_are_answered_as_by_one_to_the_bit(runner, engine, folders) -> None:
    asked = [*blocks(5), request("too long", 0, max_tokens=1000), request("", 1)]
    found = runner.run(ask(engine, asked))
    assert [one for one in found[:25] if isinstance(one, Exception)] == []
    assert [getattr(one, "reason", None) for one in found[25:]] == ["context_overflow", None]
    expected = runner.run(in_one(folders["base"], asked))
    assert str(found.pop(25)) == str(expected.pop(25))
    assert found == expected


def test_both_have_work_at_once(runner, engine) -> None:
    busy = []

    async def go() -> None:
        work = asyncio.ensure_future(ask(engine, blocks(2, max_tokens=60)))
        while not work.done():
            busy.append(len(engine._busy))
            await asyncio.sleep(0)
        await work

    runner.run(go())
    assert max(busy) == 2


def test_log_probabilities_are_shared_out_and_the_same(runner, engine, folders) -> None:
    prompts = [[7, 8, 9 + index % 5] for index in range(70)]
    answers = [[10, 11 + index % 3] * (1 + index % 7) for index in range(70)]

    async def both() -> list[Any]:
        one = await build_engine(ONE, folders["base"])
        each = [await asyncio.to_thread(e.logprobs, prompts, answers) for e in (engine, one)]
        await one.aclose()
        return [whole_of([scores], len(answers)).tolist() for scores in each]

    found, expected = runner.run(both())
    assert found == expected
    assert all(value < 0 for value in found)


def test_json_schemas_are_refused_in_the_words_of_the_engine(runner, engine) -> None:
    asked = Request("j", CHAT, Sampling(), (1,), json_schema={"type": "object"})
    with pytest.raises(EngineFailed) as failed:
        runner.run(engine.generate(asked))
    assert failed.value.remedy.startswith("use a judge that reads the verdict's token")


def test_policies_reach_both_and_each_is_checked(runner, engine, folders) -> None:
    async def go() -> list[list[list[Completion]]]:
        await engine.load_policy(folders["adapter"])
        each = [await ask(replica, blocks(1)) for replica in engine.replicas]
        assert await verify_policy(engine, folders["adapter"], [CHAT]) < 1e-3
        await engine.replicas[1].load_policy(folders["base"])
        with pytest.raises(PolicyMismatch, match="process 2 of 2 of the engine does not serve"):
            await verify_policy(engine, folders["adapter"], [CHAT])
        with pytest.raises(PolicyMismatch, match="process 2 of 2 of the engine still serves"):
            await verify_policy(
                engine, folders["adapter"], [CHAT], tolerance_nats=99.0, previous=folders["base"]
            )
        await engine.load_policy(folders["base"])
        return each

    first, second = runner.run(go())
    assert first == second == runner.run(in_one(folders["base"], blocks(1), folders["adapter"]))
    assert first != runner.run(ask(engine, blocks(1)))


def test_blocks_stay_together_where_requests_are_spread(runner, engine, folders) -> None:
    """vLLM's way of sharing out, over processes of transformers."""

    async def go() -> None:
        spread = ReplicatedVllm(engine._crew)
        asked = blocks(3, size=4, max_tokens=20)
        work = asyncio.ensure_future(ask(spread, asked))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        first, second = spread.replicas
        assert spread._under_way == {first: 16, second: 8}  # two seeds a request
        kill(second.pid)
        answers = await work
        assert not any(spread._under_way.values())
        assert not spread._homes
        engine._crew.on_change = engine._changed
        assert answers == await in_one(folders["base"], asked)
        await until_two(engine)

    runner.run(go())


def test_one_that_is_killed_comes_back_with_its_policy(runner, engine, folders, caplog) -> None:
    asked = blocks(4, max_tokens=40)
    checked = []

    async def check(replica: Engine) -> None:
        checked.append(await verify_policy(replica, folders["adapter"], [CHAT]))

    async def go() -> tuple[list[Any], int, list[Any]]:
        engine.check_by(check)
        await engine.load_policy(folders["adapter"])
        work = asyncio.ensure_future(ask(engine, asked))
        while not engine._busy:
            await asyncio.sleep(0.001)
        pid = next(iter(engine._busy)).pid
        kill(pid)
        answers = await work
        await until_two(engine)
        return answers, pid, await ask(engine.replicas[-1], blocks(1))

    with caplog.at_level(logging.WARNING, logger="prefloop"):
        answers, pid, of_new = runner.run(go())
    assert answers == runner.run(in_one(folders["base"], asked, folders["adapter"]))
    assert of_new == runner.run(in_one(folders["base"], blocks(1), folders["adapter"]))
    assert len(checked) == 1
    assert checked[0] < 1e-3
    assert pid not in [replica.pid for replica in engine.replicas]
    [said] = [one.getMessage() for one in caplog.records]
    assert said.endswith(f"(process {pid}) died (signal SIGKILL): starting it again")
    assert said.startswith("the transformers engine, replica ")
    engine._crew.check = None
    runner.run(engine.load_policy(folders["base"]))


def test_a_block_that_kills_all_who_have_it_is_named(runner, engine) -> None:
    async def go() -> list[Any]:
        work = asyncio.ensure_future(ask(engine, blocks(1, max_tokens=200)))
        killed: set[int] = set()
        while not work.done():
            for replica in list(engine._busy):
                if replica.pid not in killed:
                    killed.add(replica.pid)
                    kill(replica.pid)
            await asyncio.sleep(0.001)
        assert len(killed) == ATTEMPTS
        await until_two(engine)
        return await work

    found = runner.run(go())
    assert {type(one) for one in found} == {EngineFailed}
    assert found[0].problem == (
        f"block b0 was given to {ATTEMPTS} processes of the engine, and each died (signal SIGKILL)"
    )
    assert "set fewer `replicas`" in found[0].remedy
    good = runner.run(ask(engine, blocks(1)))
    assert all(isinstance(one, list) for one in good)


def test_one_that_does_not_come_back_is_done_without(runner, engine, folders, caplog) -> None:
    refused = asyncio.Event()

    async def refuse(replica: Engine) -> None:
        refused.set()
        raise PolicyMismatch("the engine serves something else")

    async def go() -> list[Any]:
        await engine.load_policy(folders["base"])
        engine.check_by(refuse)
        kill(engine.replicas[0].pid)
        await refused.wait()
        answers = await ask(engine, blocks(2))
        await asyncio.gather(*engine._crew._coming)
        assert len(engine.replicas) == 1
        return answers

    with caplog.at_level(logging.WARNING, logger="prefloop"):
        assert all(isinstance(one, list) for one in runner.run(go()))
    assert "does not come back (the engine serves something else)" in caplog.text


def test_when_none_comes_back_the_reason_is_said(runner, engine) -> None:
    async def go() -> None:
        kill(engine.replicas[0].pid)
        await asyncio.gather(*(engine.generate(one) for one in blocks(2, max_tokens=200)))

    with pytest.raises(EngineFailed) as failed:
        runner.run(go())
    assert failed.value.problem == (
        "the transformers engine: its processes died, and none comes back: the engine serves "
        "something else"
    )


def test_what_cannot_be_loaded_fails_as_in_one_process(runner, folders, tmp_path) -> None:
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "config.json").write_text("{}")

    async def failure(config: TransformersEngine) -> EngineFailed:
        with pytest.raises(EngineFailed) as failed:
            await build_engine(config, str(broken))
        return failed.value

    one, two = runner.run(failure(ONE)), runner.run(failure(TWO))
    assert (two.problem, two.remedy) == (one.problem, one.remedy)
    assert "broken" in two.problem
