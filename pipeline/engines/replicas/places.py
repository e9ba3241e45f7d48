"""How many processes an engine has on this machine, and which GPUs or cores each of them gets."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from prefloop.data.protocol import EngineFailed
from prefloop.pipeline.engines.settings import LocalEngine, TransformersEngine

_VISIBLE = "CUDA_VISIBLE_DEVICES"
_VLLM_CORES = "VLLM_CPU_OMP_THREADS_BIND"


@dataclass(frozen=True)
class ReplicaPlace:
    """Where one process of an engine computes.

    ``number`` counts from 1. ``gpus`` are named as CUDA names them; none on the CPU. ``cores`` are
    its own; none where it may use any.
    """

    number: int
    of: int
    gpus: tuple[str, ...]
    cores: tuple[int, ...]
    threads: int

    def __str__(self) -> str:
        return f"replica {self.number} of {self.of}"

    @property
    def bound_to(self) -> tuple[int, ...]:
        """The cores that it may not leave; none where it may use any.

        Several threads wait for each other, and for memory that is near to these cores. One alone
        is better off where another program leaves it a core.
        """
        return self.cores if self.threads > 1 else ()

    def environment(self, outer: Mapping[str, str]) -> dict[str, str]:
        """The environment of the process; ``outer`` is that of this one."""
        found = {**outer, "OMP_NUM_THREADS": str(self.threads)}
        if self.gpus:
            found[_VISIBLE] = ",".join(self.gpus)
        if self.cores:  # left alone, each vLLM would bind itself to all that it finds
            found.setdefault(_VLLM_CORES, ",".join(map(str, self.cores)))
        return found


def computes_on_gpus(engine: LocalEngine, gpus: int) -> bool:
    """Whether ``engine`` takes GPUs on a machine with so many of them."""
    if isinstance(engine, TransformersEngine) and engine.device != "auto":
        return engine.device.startswith("cuda")
    return gpus > 0


def replica_count(engine: LocalEngine, *, gpus: int, cores: int) -> int:
    """How many processes ``engine`` has on a machine of so many GPUs and cores: as many as there is
    room for, between the two numbers of its ``replicas``.

    Raises ``EngineFailed`` where the GPUs are too few for the smaller number. Cores are shared.
    """
    least, most = engine.replica_range
    if most == 1:
        return 1
    if not computes_on_gpus(engine, gpus):
        own = engine.threads or 1 if isinstance(engine, TransformersEngine) else 1
        return max(least, min(most, cores // own))
    each = engine.gpus_of_replica
    room = gpus // each
    if room < least:
        remedy = f"set replicas: {room}" if room else "set a smaller tensor_parallel_size and gpus"
        if isinstance(engine, TransformersEngine) and not room:
            remedy = "set device: cpu"
        raise EngineFailed(
            f"replicas: {least} of {each} GPU{'s' * (each > 1)} each need {least * each} GPUs, and "
            f"this machine has {gpus}",
            remedy,
        )
    return min(most, room)


def places_on(
    engine: LocalEngine, *, gpus: Sequence[str], cores: Sequence[int]
) -> list[ReplicaPlace]:
    """A place for each process of ``engine`` on a machine with these GPUs and cores.

    Every process has the same number of threads: arithmetic in the last bits follows it. On the CPU
    each has cores of its own where there are enough. Raises ``EngineFailed`` as
    :func:`replica_count` does.
    """
    count = replica_count(engine, gpus=len(gpus), cores=len(cores))
    room = len(cores) // count
    threads = engine.threads if isinstance(engine, TransformersEngine) else None
    threads = threads or max(room, 1)
    on_gpus = computes_on_gpus(engine, len(gpus))
    each = engine.gpus_of_replica if on_gpus else 0
    own = not on_gpus and threads <= room
    return [
        ReplicaPlace(
            number=index + 1,
            of=count,
            gpus=tuple(gpus[index * each : (index + 1) * each]),
            cores=tuple(cores[index * room : (index + 1) * room]) if own else (),
            threads=threads,
        )
        for index in range(count)
    ]


def replicas_here(engine: LocalEngine) -> int:
    """How many processes ``engine`` has on this machine. Raises ``EngineFailed``."""
    if engine.replica_range[1] == 1:
        return 1
    return replica_count(engine, gpus=len(visible_gpus()), cores=len(usable_cores()))


def visible_gpus() -> tuple[str, ...]:
    """The GPUs that this process may use, as CUDA names them."""
    import torch

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    named = [name.strip() for name in os.environ.get(_VISIBLE, "").split(",") if name.strip()]
    return tuple(named[:count]) if named else tuple(map(str, range(count)))


def usable_cores() -> tuple[int, ...]:
    """The cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return tuple(sorted(os.sched_getaffinity(0)))
    return tuple(range(os.cpu_count() or 1))
