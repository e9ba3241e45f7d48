"""Runs whose engines have several processes."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from prefloop.data.protocol import Request, Sampling
from prefloop.pipeline.config import RunConfig
from prefloop.pipeline.engines.replicas.replicated import ReplicatedEngine
from prefloop.pipeline.loop import take_up
from prefloop.pipeline.run.models import Models
from prefloop.pipeline.run.run_dir import RunDir
from prefloop.training.policy.logprobs import WHOLE, ScoredTexts, whole_of
from tests.helpers.runs import JUDGE, VERIFIER, run_small, small_config

pytestmark = pytest.mark.slow


def config(replicas: Any, **changes: Any) -> RunConfig:
    """Policy and judge in so many processes, in rather small blocks."""
    return small_config(
        block_size=4,
        engines={"default": {"type": "transformers", "threads": 1, "replicas": replicas}},
        label={"labelers": [JUDGE, VERIFIER], "max_invalid": None},
        **changes,
    )


def files(run: RunDir) -> dict[str, bytes]:
    """All tables of a run, to the byte."""
    found = [*run.root.rglob("*.parquet")]
    return {str(file.relative_to(run.root)): file.read_bytes() for file in sorted(found)}


def test_the_run_is_the_same_byte_for_byte(tmp_path: Path) -> None:
    """Training, the swap of policies and the figures of the new one included."""
    train = {"learning_rate": 1e-4, "batch_size": 4}
    one = files(run_small(tmp_path / "one", config(1, train=train)))
    two = files(run_small(tmp_path / "two", config(2, train=train)))
    assert len(one) > 20
    assert two.keys() == one.keys()
    assert [name for name in one if one[name] != two[name]] == []


def test_a_run_goes_on_with_another_number(tmp_path: Path) -> None:
    whole = files(run_small(tmp_path / "whole", config(1)))
    run = run_small(tmp_path / "run", config(1))
    run.round(0).candidates.remove([1, 2])
    run.round(0).votes.remove([1, 2, 3])
    run.round(0).forget_decisions()
    run_small(tmp_path / "run", config({"min": 2, "max": 2}))
    assert files(run) == whole


def test_a_policy_reaches_all_behind_a_seat(tmp_path: Path) -> None:
    chosen = config(2, memory="keep_open")
    asked = Request("r", ({"role": "user", "content": "Hello"},), Sampling(max_tokens=3), (1,))
    _, models, context = take_up(chosen, RunDir(tmp_path / "run"))
    assert (models.blocks_in_flight, context.blocks_in_flight) == (4, 4)

    async def go(models: Models) -> list[str]:
        policy = await models.engine("default", "policy")
        before = await policy.generate(asked)
        models.use_policy(models.checkpoint_of("embedded:judge", "default"))
        after = await (await models.engine("default", "policy")).generate(asked)
        opened = models.opened("default", "policy")
        assert isinstance(opened, ReplicatedEngine)
        each = [await replica.generate(asked) for replica in opened.replicas]
        async with models.scoring() as scorer:
            read = scorer.read(
                Path(models.policy), ScoredTexts([asked.messages] * 40, ["Yes"] * 40)
            )
            whole = await asyncio.to_thread(read, WHOLE)
            shares = [await asyncio.to_thread(read, (index, 3)) for index in range(3)]
            assert 0 < min(len(rows) for rows, _ in shares) < 40
            assert whole_of(shares, 40).tolist() == whole_of([whole], 40).tolist()
        await models.release()
        return [one[0].text for one in (before, after, *each)]

    before, after, *each = asyncio.run(go(models))
    assert each == [after, after] != [before, before]
