"""Where models can be computed on this machine, in what numbers, and how much memory is there."""

from __future__ import annotations

import os

from prefloop.pipeline.engines.settings import EngineConfig, OpenAIEngine, TransformersEngine

CPU = "cpu"
BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
"""Of a number of each type."""


def gpus() -> int:
    """GPUs of this machine that torch can use."""
    import torch

    return torch.cuda.device_count() if torch.cuda.is_available() else 0


def devices_of(engine: EngineConfig) -> tuple[str, ...]:
    """The devices that ``engine`` computes on; none for a server's."""
    if isinstance(engine, OpenAIEngine):
        return ()
    if isinstance(engine, TransformersEngine):
        return (device_named(engine.device),)
    if not gpus():
        return (CPU,)
    return tuple(f"cuda:{index}" for index in range(engine.tensor_parallel_size))


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
    """Bytes of memory that ``device`` has in all."""
    if device.startswith("cuda"):
        import torch

        return int(torch.cuda.get_device_properties(device).total_memory)
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def device_name(device: str) -> str:
    """For people."""
    if device.startswith("cuda"):
        import torch

        return f"{torch.cuda.get_device_name(device)} ({device})"
    return f"the main memory of this machine ({os.cpu_count()} CPU threads)"
