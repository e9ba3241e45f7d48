"""Where models can be computed on this machine, in what numbers, and how much memory is there."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

from prefloop.data.protocol import EngineFailed
from prefloop.pipeline.engines.replicas.places import (
    computes_on_gpus,
    replica_count,
    usable_cores,
)
from prefloop.pipeline.engines.settings import EngineConfig, OpenAIEngine, TransformersEngine
from prefloop.pipeline.engines.weights import usable_device

CPU = "cpu"
_CARDS = ("cuda", "xpu")
"""Devices with a memory of their own."""
BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
"""Of a number of each type."""


@dataclass(frozen=True)
class Gpus:
    """GPUs that are not here, and that a plan is made for."""

    name: str
    count: int
    memory: int
    """Bytes of each."""
    speed_from: str
    """Where the figures of their speed come from, in words."""


_PRETENDED: ContextVar[Gpus | None] = ContextVar("pretended", default=None)


@contextmanager
def pretended(there: Gpus) -> Iterator[None]:
    """Answer meanwhile as if ``there`` were the GPUs of this machine: for plans, and nothing that
    computes."""
    token = _PRETENDED.set(there)
    try:
        yield
    finally:
        _PRETENDED.reset(token)


def gpus_pretended() -> Gpus | None:
    """The GPUs that a plan is made for; null where it is made for this machine."""
    return _PRETENDED.get()


def gpus() -> int:
    """GPUs of this machine that torch can use."""
    if there := _PRETENDED.get():
        return there.count
    import torch

    return torch.cuda.device_count() if torch.cuda.is_available() else 0


def replicas_of(engine: EngineConfig) -> int:
    """How many processes ``engine`` has on this machine, 1 being this one; none for a server.

    Raises ``EngineFailed`` where there are not the GPUs for them.
    """
    if isinstance(engine, OpenAIEngine):
        return 0
    if engine.replica_range[1] == 1:
        return 1
    return replica_count(engine, gpus=gpus(), cores=len(usable_cores()))


def devices_of(engine: EngineConfig) -> tuple[str, ...]:
    """The devices that ``engine`` computes on, all of its processes together; none for a server's.

    Raises ``EngineFailed`` where it needs more GPUs than there are.
    """
    if isinstance(engine, OpenAIEngine):
        return ()
    count = replicas_of(engine)
    if isinstance(engine, TransformersEngine):
        if count == 1 or not computes_on_gpus(engine, gpus()):
            return (device_named(engine.device),)
        return tuple(f"cuda:{index}" for index in range(count))
    there = gpus()
    if not there:
        return (CPU,)
    wanted = count * (engine.gpus_of_replica if count > 1 else engine.tensor_parallel_size)
    if wanted > there:
        raise EngineFailed(
            f"tensor_parallel_size: {wanted} needs {wanted} GPUs, and this machine has {there}",
            f"set tensor_parallel_size: {there}",
        )
    return tuple(f"cuda:{index}" for index in range(wanted))


def device_beside(engine: EngineConfig) -> str:
    """The one device that a model is computed on in this process with the settings of ``engine``,
    however many devices that itself takes, and whether they are here."""
    return device_named(engine.device if isinstance(engine, TransformersEngine) else "auto")


def device_named(name: str) -> str:
    """``auto`` and ``cuda`` as the device that they mean."""
    if name == "auto":
        name = "cuda" if gpus() else CPU
    return f"{name}:0" if name == "cuda" else name


def dtype_of(engine: EngineConfig) -> str:
    """The type of the numbers that ``engine`` computes with."""
    named = "auto" if isinstance(engine, OpenAIEngine) else engine.dtype
    return dtype_on(named, next(iter(devices_of(engine)), CPU))


def dtype_on(named: str, device: str) -> str:
    """``auto`` as the type that it means on ``device``."""
    if named != "auto":
        return named
    return "float32" if device == CPU else "bfloat16"


def capacity(device: str) -> int:
    """Bytes of memory that ``device`` has in all. Raises ``EngineFailed`` where it is not here."""
    if device.startswith(_CARDS):
        if there := _PRETENDED.get():
            return there.memory
        return int(_card(device).total_memory)
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def device_name(device: str) -> str:
    """For people."""
    if device.startswith(_CARDS):
        if there := _PRETENDED.get():
            return f"{there.name} ({device})"
        return f"{_card(device).name} ({device})"
    return f"the main memory of this machine ({os.cpu_count()} CPU threads)"


def _card(device: str) -> Any:
    import torch

    usable_device(device)
    return getattr(torch, device.partition(":")[0]).get_device_properties(device)
