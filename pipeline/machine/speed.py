"""How fast this machine computes, measured in about a second and kept in the user's cache folder.

A model's time follows from three numbers: how fast numbers are multiplied, how fast weights are
read, and how long the machine takes to begin an operation, which is what tiny models wait for.
"""

from __future__ import annotations

import json
import logging
import os
import platform
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib.metadata import version
from itertools import cycle
from pathlib import Path
from typing import Any

from prefloop.data.errors import PrefloopError
from prefloop.data.hashing import json_hash
from prefloop.data.shards import atomic_write_json
from prefloop.pipeline.engines.weights import usable_device
from prefloop.pipeline.machine.hardware import CPU, device_name
from prefloop.pipeline.machine.user_cache import cache_folder

logger = logging.getLogger(__name__)

_SECONDS = 0.4  # for each of the three numbers
_KEPT_S = 24 * 3600
_VERSION = 1


@dataclass(frozen=True)
class MachineSpeed:
    """What one device does in one type of numbers."""

    flops: float
    """Floating-point operations a second in products of large matrices."""
    bytes_per_second: float
    """Weights that a single token is multiplied with, read from memory."""
    operation_s: float
    """Seconds of an operation on a few numbers."""


def machine_speed(device: str, dtype: str) -> MachineSpeed:
    """The speed of ``device``, from the cache folder where it was measured within a day."""
    file = cache_folder() / f"speed-{_machine_hash(device, dtype)}.json"
    kept = _read(file)
    if kept is None:
        kept = measure(device, dtype)
        if os.getloadavg()[0] > (os.cpu_count() or 1):
            return kept  # of a machine that is busy now: tomorrow's plan is to know better
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            atomic_write_json(file, asdict(kept))
        except (OSError, PrefloopError) as error:
            logger.debug("the speed of this machine is not kept: %s", error)
    return kept


def measure(device: str, dtype: str, *, seconds: float = _SECONDS) -> MachineSpeed:
    """Measure for about three times ``seconds``. Raises ``EngineFailed`` where there is no such
    device."""
    import torch
    from torch.nn.functional import linear

    usable_device(device)
    kind = getattr(torch, dtype)
    # Milliseconds each: short enough that on a busy machine some are not interrupted.
    rows, width = (4096, 4096) if device != CPU else (128, 512)

    def tensor(*shape: int) -> Any:
        return torch.randn(shape, device=device).to(kind)

    def wait() -> None:
        if device != CPU:
            torch.accelerator.synchronize(device)

    def timed(work: Callable[[], Any]) -> float:
        """Seconds of the fastest of many calls: other work on the machine slows the rest."""
        work()
        wait()
        found: list[float] = []
        while sum(found) < seconds or len(found) < 3:
            began = time.perf_counter()
            work()
            wait()
            found.append(time.perf_counter() - began)
        return min(found)

    with torch.inference_mode():
        many, weights = tensor(rows, width), tensor(width * 2, width)
        product = timed(lambda: linear(many, weights))
        one = tensor(1, 4096)
        layers = [tensor(2048, 4096) for _ in range(8)]  # together larger than its caches
        in_turn = cycle(layers)
        reading = timed(lambda: linear(one, next(in_turn)))
        few, small = tensor(8, 64), tensor(64, 64)

        def begin_operations() -> Any:
            found = few
            for _ in range(5):
                found = linear(found, small) * 0.5
            return found

        beginning = timed(begin_operations)
    return MachineSpeed(
        flops=2 * many.numel() * weights.shape[0] / product,
        bytes_per_second=layers[0].numel() * layers[0].element_size() / reading,
        operation_s=beginning / 10,
    )


def _machine_hash(device: str, dtype: str) -> str:
    about = {
        "version": _VERSION,
        "host": platform.node(),
        "processor": platform.processor() or platform.machine(),
        "threads": [os.cpu_count(), os.environ.get("OMP_NUM_THREADS")],
        "torch": version("torch"),
        "device": [device, device_name(device)],
        "dtype": dtype,
    }
    return json_hash(about)[:12]


def _read(file: Path) -> MachineSpeed | None:
    try:
        if time.time() - file.stat().st_mtime > _KEPT_S:
            return None
        found = MachineSpeed(**json.loads(file.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None
    numbers = asdict(found).values()
    right = all(isinstance(one, int | float) and one > 0 for one in numbers)
    return found if right else None
