"""Who gets which GPUs and cores, and how many processes there are."""

from __future__ import annotations

from typing import Any

import pytest

from prefloop.data.protocol import EngineFailed
from prefloop.pipeline.config import ConfigError
from prefloop.pipeline.engines.replicas.places import (
    places_on,
    replica_count,
    replicas_here,
    visible_gpus,
)
from prefloop.pipeline.engines.settings import TransformersEngine, VllmEngine
from tests.helpers.runs import small_config

GPUS = ("GPU-a", "GPU-b", "GPU-c", "GPU-d")
CORES = (0, 1, 2, 3, 8, 9)


def test_gpus_are_dealt_out_and_cores_are_not_bound() -> None:
    engine = VllmEngine(replicas=2, tensor_parallel_size=2)
    found = places_on(engine, gpus=GPUS, cores=CORES)
    assert [(one.number, one.gpus, one.cores) for one in found] == [
        (1, ("GPU-a", "GPU-b"), ()), (2, ("GPU-c", "GPU-d"), ()),
    ]  # fmt: skip
    own = found[1].environment({"CUDA_VISIBLE_DEVICES": "all of them", "HOME": "/h"})
    assert own == {"CUDA_VISIBLE_DEVICES": "GPU-c,GPU-d", "OMP_NUM_THREADS": "3", "HOME": "/h"}
    assert [one.gpus for one in places_on(TransformersEngine(replicas=3), gpus=GPUS, cores=CORES)] \
        == [("GPU-a",), ("GPU-b",), ("GPU-c",)]  # fmt: skip


def test_cores_are_dealt_out_where_there_is_no_gpu() -> None:
    found = places_on(TransformersEngine(replicas=3), gpus=(), cores=CORES)
    assert [(one.cores, one.threads, one.gpus) for one in found] == [
        ((0, 1), 2, ()), ((2, 3), 2, ()), ((8, 9), 2, ()),
    ]  # fmt: skip
    assert str(found[2]) == "replica 3 of 3"
    assert found[2].bound_to == (8, 9)
    [*_, last] = places_on(TransformersEngine(replicas=6), gpus=(), cores=CORES)
    assert (last.cores, last.bound_to) == ((9,), ())
    own = places_on(VllmEngine(replicas=2), gpus=(), cores=CORES)[1].environment({})
    assert own == {"OMP_NUM_THREADS": "3", "VLLM_CPU_OMP_THREADS_BIND": "3,8,9"}
    on_cpu = TransformersEngine(replicas=2, device="cpu")
    assert [one.cores for one in places_on(on_cpu, gpus=GPUS, cores=CORES)] \
        == [(0, 1, 2), (3, 8, 9)]  # fmt: skip


@pytest.mark.parametrize(("replicas", "threads", "each"), [(8, None, 1), (3, 4, 4)])
def test_more_threads_than_cores_are_bound_to_none(
    replicas: int, threads: int | None, each: int
) -> None:
    engine = TransformersEngine(replicas=replicas, threads=threads)
    found = places_on(engine, gpus=(), cores=CORES)
    assert {(one.cores, one.threads) for one in found} == {((), each)}
    assert len(found) == replicas


@pytest.mark.parametrize(
    ("engine", "gpus", "cores", "count"),
    [
        (TransformersEngine(replicas={"min": 1, "max": 8}), 4, 64, 4),
        (TransformersEngine(replicas={"max": 2}), 4, 64, 2),
        (TransformersEngine(replicas={"max": 8}), 0, 6, 6),
        (TransformersEngine(replicas={"max": 8}, threads=2), 0, 6, 3),
        (TransformersEngine(replicas={"min": 4, "max": 8}), 0, 2, 4),
        (VllmEngine(replicas={"max": 8}, gpus=2), 5, 64, 2),
        (VllmEngine(replicas={"max": 8}, tensor_parallel_size=2), 3, 64, 1),
        (VllmEngine(), 8, 64, 1),
    ],
)
def test_as_many_as_there_is_room_for(engine: Any, gpus: int, cores: int, count: int) -> None:
    assert replica_count(engine, gpus=gpus, cores=cores) == count


@pytest.mark.parametrize(
    ("engine", "gpus", "problem", "remedy"),
    [
        (VllmEngine(replicas=4, tensor_parallel_size=2), 4,
         "replicas: 4 of 2 GPUs each need 8 GPUs, and this machine has 4", "set replicas: 2"),
        (TransformersEngine(replicas={"min": 2, "max": 3}), 1,
         "replicas: 2 of 1 GPU each need 2 GPUs, and this machine has 1", "set replicas: 1"),
        (VllmEngine(replicas=2, gpus=4), 2,
         "replicas: 2 of 4 GPUs each need 8 GPUs, and this machine has 2",
         "set a smaller tensor_parallel_size and gpus"),
        (TransformersEngine(replicas=2, device="cuda"), 0,
         "replicas: 2 of 1 GPU each need 2 GPUs, and this machine has 0", "set device: cpu"),
    ],
)  # fmt: skip
def test_too_few_gpus_are_one_line(engine: Any, gpus: int, problem: str, remedy: str) -> None:
    with pytest.raises(EngineFailed) as failed:
        replica_count(engine, gpus=gpus, cores=4)
    assert (failed.value.problem, failed.value.remedy) == (problem, remedy)


def test_one_needs_no_look_at_the_machine() -> None:
    assert replicas_here(TransformersEngine(device="cuda")) == 1


def test_hidden_gpus_are_nobody_s(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5, 3")
    assert visible_gpus() == ("5", "3")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    assert visible_gpus() == ("0", "1")


@pytest.mark.parametrize(
    ("engine", "said"),
    [
        ({"type": "openai", "replicas": 2}, "list servers in `endpoints`"),
        ({"type": "transformers", "replicas": 0}, "engines.default.replicas: Input"),
        ({"type": "transformers", "replicas": {"min": 3, "max": 2}},
         "engines.default.replicas: min 3 is more than max 2"),
        ({"type": "transformers", "replicas": 2, "device": "cuda:1"}, "set device: auto"),
        ({"type": "vllm", "gpus": 1, "tensor_parallel_size": 2}, "leave gpus out"),
        ({"type": "vllm", "replicas": {"most": 2}}, "replicas.most: unknown key"),
    ],
)  # fmt: skip
def test_a_wrong_setting_names_its_key(engine: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError) as failed:
        small_config(engines={"default": engine})
    assert said in str(failed.value)
    assert "number" not in str(failed.value).split(said)[0]
