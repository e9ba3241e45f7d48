"""What a worker takes, and how many there are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from prefloop.pipeline.config import RunConfig, validate_config
from prefloop.pipeline.executors.block_task import BlockTask, ExecutorFailed
from prefloop.pipeline.executors.resources import (
    WorkerNeeds,
    blocks_at_hand,
    of_one_worker,
    share_rates,
    worker_needs,
)

ENGINES = {
    "policy": {"type": "vllm", "tensor_parallel_size": 2},
    "judge": {"type": "openai"},
    "tiny": {"type": "transformers"},
}


def config(**changes: Any) -> RunConfig:
    judge = {"type": "judge", "name": "j", "engine": "judge", "model": "m"}
    raw: dict[str, Any] = {
        "engines": ENGINES,
        "executor": {"type": "ray", "cpus": 2},
        "prompts": {"train": {"path": "embedded:prompts"}},
        "sample": {"engine": "policy"},
        "label": {"labelers": [judge]},
    }
    return validate_config(raw | changes, "test")


def needs(stage: str, *, has_gpus: bool = True, **changes: Any) -> WorkerNeeds:
    whole = config(**changes)
    details = {
        "sample": {"sample": whole.sample.model_dump(mode="json")},
        "label": {"label": whole.label.model_dump(mode="json")},
    }[stage]
    return worker_needs(whole, BlockTask(stage, Path(), 0, details), has_gpus=has_gpus)


def test_a_worker_has_the_gpus_of_the_engines_that_its_stage_opens() -> None:
    assert needs("sample") == WorkerNeeds(2, 2.0, None, 1, None, computes=True)
    assert needs("label") == WorkerNeeds(2, 0.0, None, 1, None, computes=False)
    assert needs("sample", has_gpus=False).gpus == 0


def test_a_worker_of_tables_opens_no_engine() -> None:
    task = BlockTask("filter", Path(), 0, {"units": [[[0, 3]]], "there": []})
    assert worker_needs(config(), task, has_gpus=True) == WorkerNeeds(
        2, 0.0, None, 1, None, computes=False
    )
    few = config(executor={"type": "ray", "workers": 3})
    assert worker_needs(few, task, has_gpus=True).most == 3


def test_engines_of_one_worker_share_its_gpus() -> None:
    pool = [
        {"name": "a", "engine": "policy", "model": "x"},
        {"name": "b", "engine": "tiny", "model": "y"},
        {"name": "c", "engine": "judge", "model": "z"},
    ]
    assert needs("sample", sample={"pool": pool, "engine": "policy"}).gpus == 2


def test_there_are_no_more_workers_than_wanted() -> None:
    taken = needs("sample", executor={"type": "ray", "workers": 3})
    assert (taken.least, taken.most) == (1, 3)


def test_what_engines_ask_for_is_what_a_worker_has() -> None:
    vllm = {"type": "vllm", "replicas": {"min": 2, "max": 6}, "gpus": 4, "cpus": 3}
    engines = ENGINES | {"policy": vllm | {"accelerator_type": "H100"}}
    assert needs("sample", engines=engines) == WorkerNeeds(5, 4.0, "H100", 2, 6, computes=True)
    few = {"type": "ray", "workers": 1}
    taken = needs("sample", engines=engines, executor=few)
    assert (taken.least, taken.most) == (1, 1)
    assert of_one_worker(config(engines=engines)).engines["policy"].replica_range == (1, 1)


def test_two_kinds_of_gpu_are_not_in_one_worker() -> None:
    engines = ENGINES | {
        "policy": ENGINES["policy"] | {"accelerator_type": "H100"},
        "tiny": ENGINES["tiny"] | {"accelerator_type": "L4"},
    }
    pool = [
        {"name": "a", "engine": "policy", "model": "x"},
        {"name": "b", "engine": "tiny", "model": "y"},
    ]
    with pytest.raises(ExecutorFailed, match=r"accelerator_type \(H100, L4\)"):
        needs("sample", engines=engines, sample={"pool": pool, "engine": "policy"})


def test_labelers_with_models_of_their_own_take_one_too() -> None:
    reward = {"type": "reward_model", "name": "r", "model": "m"}
    taken = needs("label", label={"labelers": [reward]})
    assert (taken.gpus, taken.computes) == (1.0, True)


@pytest.mark.parametrize(
    ("policy", "gpus"),
    [
        ({"type": "vllm", "tensor_parallel_size": 4}, 1.0),
        ({"type": "transformers"}, 1.0),
        ({"type": "transformers", "device": "cpu"}, 0.0),
        ({"type": "openai", "tokenizer": "t"}, 1.0),
    ],
)
def test_texts_are_read_by_one_model_on_one_gpu(policy: dict[str, Any], gpus: float) -> None:
    whole = config(engines=ENGINES | {"policy": policy})
    task = BlockTask("log-probabilities", Path(), 0, {"readings": []})
    found = worker_needs(whole, task, has_gpus=True)
    assert found == WorkerNeeds(2, gpus, None, 1, None, computes=True)
    assert worker_needs(whole, task, has_gpus=False).gpus == 0


def test_texts_are_read_by_the_workers_that_the_policy_has() -> None:
    vllm = {"type": "vllm", "replicas": {"min": 2, "max": 6}, "cpus": 3, "accelerator_type": "H100"}
    task = BlockTask("log-probabilities", Path(), 0, {"readings": []})
    found = worker_needs(config(engines=ENGINES | {"policy": vllm}), task, has_gpus=True)
    assert found == WorkerNeeds(5, 1.0, "H100", 2, 6, computes=True)


def test_nothing_is_opened_to_sample_where_answers_are_given() -> None:
    taken = needs("sample", sample={"from": {"path": "x.jsonl"}})
    assert (taken.gpus, taken.computes) == (0.0, False)


def test_workers_ask_together_what_may_be_asked_in_a_minute() -> None:
    engine = {
        "requests_per_minute": 100,
        "tokens_per_minute": None,
        "endpoints": [{"base_url": "x", "tokens_per_minute": 3}],
    }
    share_rates(engine, 8)
    assert engine == {
        "requests_per_minute": 12,
        "tokens_per_minute": None,
        "endpoints": [{"base_url": "x", "tokens_per_minute": 1}],
    }


def test_a_worker_has_a_small_part_of_its_share_at_hand() -> None:
    found = [blocks_at_hand(blocks, 4) for blocks in (6, 200, 1000, 100_000)]
    assert found == [0, 3, 15, 64]
