"""Models that take turns in memory: the same dataset, and who was opened when."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from prefloop.data.protocol import Engine, EngineFailed, Request, Sampling
from prefloop.labelers.config import JudgeLabeler
from prefloop.pipeline.engines.factory import build_engine
from prefloop.pipeline.engines.transformers_engine import HfEngine
from prefloop.pipeline.machine.hardware import Gpus, pretended
from prefloop.pipeline.run.models import Models
from prefloop.pipeline.run.run_dir import RunDir
from prefloop.training.policy.logprobs import (
    WHOLE,
    ScoredTexts,
    answer_logprobs,
    loaded_reader,
    whole_of,
)
from tests.helpers.runs import VERIFIER, run_small, small_config

POOL = [{"name": "one"}, {"name": "two", "model": "embedded:judge", "engine": "other"}]
JUDGES = [
    {"type": "judge", "name": name, "judge": "pairwise_short", "model": model}
    for name, model in (("strict", "embedded:judge"), ("lax", "embedded:policy"))
]
SMALL: dict[str, Any] = {
    "block_size": 2,
    "prompts": {
        "train": {"path": "embedded:prompts", "limit": 6},
        "heldout": {"path": "embedded:heldout", "limit": 2},
    },
    "engines": {"default": {"type": "transformers"}, "other": {"type": "transformers"}},
    "sample": {"n": 3, "max_tokens": 12, "pool": POOL},
    "label": {"labelers": [*JUDGES, VERIFIER], "max_invalid": None},
    "filter": {"filters": []},
}


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the models of engines as they are opened, ``-`` before those of closed ones."""
    events: list[str] = []

    async def build(config: Any, model: str, **options: Any) -> Engine:
        engine = await build_engine(config, model, **options)
        if not isinstance(engine, HfEngine):
            return engine
        close = engine.aclose

        async def aclose() -> None:
            events.append(f"-{Path(model).name}")
            await close()

        monkeypatch.setattr(engine, "aclose", aclose)
        events.append(Path(model).name)
        return engine

    monkeypatch.setattr("prefloop.pipeline.run.models.build_engine", build)
    return events


def files(run: RunDir) -> dict[str, bytes]:
    """What a run made: candidates, votes and the dataset, to the byte."""
    found = [*run.dataset.glob("data/*.parquet")]
    for noun in ("candidate", "vote"):
        found += run.round(0).root.glob(f"{noun}/*.parquet")
    return {str(file.relative_to(run.root)): file.read_bytes() for file in sorted(found)}


def test_in_turn_or_together_the_dataset_is_the_same(tmp_path: Path, opened: list[str]) -> None:
    together = files(run_small(tmp_path / "a", small_config(**SMALL, memory="keep_open")))
    assert len(together) >= 7
    assert opened[:4] == ["policy", "judge", "judge", "policy"]
    assert sum(event.startswith("-") for event in opened) == 4  # all at the end
    opened.clear()
    in_turn = files(run_small(tmp_path / "b", small_config(**SMALL, memory="one_at_a_time")))
    assert in_turn == together
    inside = 0
    for event in opened:
        inside += -1 if event.startswith("-") else 1
        assert inside in (0, 1)
    # Four engines are opened as their stages begin, and of two that share a stage the first again;
    # the reader of the first stage's second member, and the second judge, are there already.
    assert [event for event in opened if not event.startswith("-")] == [
        "policy", "judge", "policy", "judge", "policy", "judge",
    ]  # fmt: skip


def test_a_run_goes_on_with_models_in_turn(tmp_path: Path) -> None:
    whole = files(run_small(tmp_path / "a", small_config(**SMALL)))
    run = run_small(tmp_path / "b", small_config(**SMALL))
    run.round(0).candidates.remove([1])
    run.round(0).votes.remove([1, 2])
    run.round(0).forget_decisions()
    assert files(run_small(tmp_path / "b", small_config(**SMALL, memory="one_at_a_time"))) == whole


def test_policies_are_swapped_in_after_others_had_the_place(
    tmp_path: Path, opened: list[str]
) -> None:
    del tmp_path
    config = small_config(memory="one_at_a_time")
    question = Request("r", ({"role": "user", "content": "Hello"},), Sampling(max_tokens=3), (1,))

    async def turns() -> list[str]:
        models = Models(config)
        [judge] = [one for one in config.label.labelers if isinstance(one, JudgeLabeler)]
        policy = await models.engine("default", "policy")
        before = await policy.generate(question)
        other = await models.engine("default", judge.model)
        await other.generate(question)
        models.use_policy(models.checkpoint_of(judge.model, "default"))
        changed = await models.engine("default", "policy")
        after = await changed.generate(question)
        like = await other.generate(question)
        await models.release()
        return [one[0].text for one in (before, after, like)]

    before, after, like = asyncio.run(turns())
    assert after == like != before
    assert [event for event in opened if not event.startswith("-")] == ["policy"] + ["judge"] * 3


def test_the_engine_scores_what_it_serves_as_a_loaded_model_would(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = small_config()
    prompts = [({"role": "user", "content": text},) for text in ("Hello", "Name a colour.")]
    answers, complete = ["Good day to you.", "Blue"], [True, False]
    texts = ScoredTexts(prompts, answers, complete)
    loaded: list[str] = []

    def load(checkpoint: Path, *texts_and_place: Any) -> Any:
        loaded.append(checkpoint.name)
        return loaded_reader(checkpoint, *texts_and_place)

    monkeypatch.setattr("prefloop.pipeline.run.models.loaded_reader", load)

    async def both() -> list[Any]:
        models = Models(config)
        served = Path(models.start)
        other = Path(models.checkpoint_of("embedded:judge", "default"))
        await models.engine("default", "policy")
        async with models.scoring() as scorer:
            found = [whole_of([scorer.read(one, texts)(WHOLE)], 2) for one in (served, other)]
        await models.release()
        return [
            *found,
            *(answer_logprobs(one, prompts, answers, complete=complete) for one in (served, other)),
        ]

    served, other, *expected = asyncio.run(both())
    assert loaded == ["judge"]
    assert [served.tolist(), other.tolist()] == [one.tolist() for one in expected]
    assert served.tolist() != other.tolist()


def test_a_cluster_has_the_gpus_that_this_machine_has_not() -> None:
    engines = {"default": {"type": "vllm", "tensor_parallel_size": 2}}
    with pretended(Gpus("H100", 1, 80 << 30, "")):
        with pytest.raises(EngineFailed, match="needs 2 GPUs, and this machine has 1"):
            _ = Models(small_config(engines=engines)).blocks_in_flight
        models = Models(small_config(engines=engines, executor={"type": "ray"}))
        assert models.blocks_in_flight == 2
        assert models.admission is not None

        async def dtypes() -> list[str]:
            async with models.scoring() as usual, models.scoring("float32") as asked:
                return [usual.dtype, asked.dtype]

        assert asyncio.run(dtypes()) == ["bfloat16", "float32"]


def test_in_turn_the_engine_leaves_for_the_scorer(opened: list[str]) -> None:
    config = small_config(memory="one_at_a_time")

    async def score() -> Any:
        models = Models(config)
        await models.engine("default", "policy")
        async with models.scoring() as scorer:
            assert opened == ["policy", "-policy"]
            texts = ScoredTexts([({"role": "user", "content": "Hi"},)], ["Yes"])
            _, found = scorer.read(Path(models.start), texts)(WHOLE)
        await models.engine("default", "policy")
        await models.release()
        return found

    assert asyncio.run(score()).shape == (1,)
    assert opened == ["policy", "-policy", "policy", "-policy"]


def test_servers_keep_their_count_while_models_make_room(opened: list[str]) -> None:
    engines = {"default": {"type": "transformers"}, "api": {"type": "openai"}}
    config = small_config(memory="one_at_a_time", engines=engines, train={})

    async def training_comes() -> None:
        models = Models(config)
        await models.engine("api", "served")
        await models.engine("default", "policy")
        server = models.opened("api", "served")
        await models.make_room()
        assert models.opened("default", "policy") is None
        assert models.opened("api", "served") is server is not None
        await models.release()
        assert models.opened("api", "served") is None

    asyncio.run(training_comes())
    assert opened == ["policy", "-policy"]


def test_further_blocks_begin_unless_their_number_is_given() -> None:
    admission = Models(small_config()).admission
    assert admission is not None
    assert admission.most == 64
    assert Models(small_config(blocks_in_flight=2)).admission is None
    assert Models(small_config(**SMALL, memory="one_at_a_time")).admission is None
