"""A training computes with as many threads as the config says, whoever computed before it: one that
a kill parted from its sampling gave other weights."""

import asyncio
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NoReturn

import pytest
import torch

from prefloop.data.embedded import resolve_embedded
from prefloop.data.protocol import Request, Sampling
from prefloop.pipeline.engines.settings import TransformersEngine
from prefloop.pipeline.engines.transformers_engine import HfEngine
from prefloop.pipeline.run.context import RunContext
from prefloop.pipeline.run.run_dir import RunDir
from prefloop.pipeline.stages.train import run_training
from prefloop.training.config import Guards
from tests.helpers.runs import small_config


class _Seen(Exception):
    """Ends a training before it begins."""


def _threads_of_training(root: Path, **engine: object) -> int:
    """In a thread that has not computed yet, as that of a new process."""
    config = small_config(engines={"default": {"type": "transformers", **engine}})
    found: list[int] = []

    def train(_: object) -> NoReturn:
        found.append(torch.get_num_threads())
        raise _Seen

    def work() -> None:
        with pytest.raises(_Seen):
            run_training(RunContext.of(config, RunDir(root)).round(0), Guards(), train)

    with ThreadPoolExecutor(1) as pool:
        pool.submit(work).result()
        [threads] = found
        assert pool.submit(torch.get_num_threads).result() == _of_a_new_thread()
    return threads


def _of_a_new_thread() -> int:
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(torch.get_num_threads).result()


def _sample(threads: int | None) -> None:
    async def sampled() -> None:
        engine = HfEngine(
            TransformersEngine(device="cpu", threads=threads), resolve_embedded("embedded:policy")
        )
        asked = ({"role": "user", "content": "Say hello."},)
        await engine.generate(Request("a", asked, Sampling(max_tokens=2), seeds=(0,)))
        await engine.aclose()

    asyncio.run(sampled())


def test_who_sampled_before_decides_nothing_of_a_training(tmp_path: Path) -> None:
    usual = _of_a_new_thread()
    asked = usual + 3
    fresh = [_threads_of_training(tmp_path), _threads_of_training(tmp_path, threads=asked)]
    assert fresh == [usual, asked]
    _sample(asked)
    after = [_threads_of_training(tmp_path), _threads_of_training(tmp_path, threads=asked)]
    assert after == fresh
    assert _of_a_new_thread() == usual


def test_threads_of_several_processes_are_not_those_of_training(tmp_path: Path) -> None:
    usual = _of_a_new_thread()
    assert _threads_of_training(tmp_path, threads=usual + 3, replicas=2) == usual
