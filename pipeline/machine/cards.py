"""Machines that a plan can be made for without having one: GPUs by what their data sheets say.

A plan for a machine of this kind is arithmetic from the sheet: what large products and reads of
weights reach of it in practice is assumed, where on this machine it is measured.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from prefloop.data.errors import InputError
from prefloop.pipeline.machine.hardware import CPU, Gpus, pretended
from prefloop.pipeline.machine.speed import MachineSpeed, machine_speed

REACHED_FLOPS = 0.65
"""Of the sheet's operations a second, what products of large matrices reach."""
REACHED_BYTES = 0.85
"""Of the sheet's memory bandwidth, what reading weights reaches."""
OPERATION_S = 4e-6
"""Seconds in which a GPU begins an operation."""
_GIB = 2**30


@dataclass(frozen=True)
class Card:
    """A GPU, by its data sheet: dense products, without sparsity."""

    name: str
    memory: int
    """Bytes that a process sees: a little less than on the sheet."""
    bfloat16: float
    """Operations a second."""
    float32: float
    bytes_per_second: float

    def speed(self, dtype: str) -> MachineSpeed:
        """What is assumed of it in one type of numbers."""
        flops = self.float32 if dtype == "float32" else self.bfloat16
        return MachineSpeed(
            flops=REACHED_FLOPS * flops,
            bytes_per_second=REACHED_BYTES * self.bytes_per_second,
            operation_s=OPERATION_S,
        )


CARDS = {
    "rtx4090": Card("RTX 4090", round(23.5 * _GIB), 165.2e12, 82.6e12, 1.008e12),
    "l40s": Card("L40S", 44 * _GIB, 362e12, 91.6e12, 0.864e12),
    "a100": Card("A100 80 GB (SXM)", 79 * _GIB, 312e12, 19.5e12, 2.039e12),
    "h100": Card("H100 80 GB (SXM)", 79 * _GIB, 989e12, 67e12, 3.35e12),
    "h200": Card("H200 (SXM)", 139 * _GIB, 989e12, 67e12, 4.8e12),
}
"""By the names that ``--on`` takes."""


@dataclass(frozen=True)
class Machine:
    """So many of one card."""

    count: int
    card: Card

    @contextmanager
    def pretended(self) -> Iterator[None]:
        """Meanwhile plans are made as if this were the machine."""
        card = self.card
        sheet = (
            f"{REACHED_FLOPS:.0%} of the operations and {REACHED_BYTES:.0%} of the bandwidth on "
            f"the data sheet of the {card.name}"
        )
        with pretended(Gpus(card.name, self.count, card.memory, sheet)):
            yield

    def speed_of(self, device: str, dtype: str) -> MachineSpeed:
        """Of its GPUs; its processor is taken to be like the one here."""
        return machine_speed(device, dtype) if device == CPU else self.card.speed(dtype)


def machine_named(text: str) -> Machine:
    """``h100`` or ``8xh100``. Raises ``InputError`` for what is none of the cards."""
    found = re.fullmatch(r"(?:([1-9]\d{0,3})x)?([a-z0-9]+)", re.sub(r"[\s_-]", "", text.lower()))
    if found is None or found[2] not in CARDS:
        raise InputError(
            f"--on: {text!r} is no machine that is known: take one of {', '.join(CARDS)}, with "
            "their number before it where there are several (8xh100)"
        )
    return Machine(int(found[1] or 1), CARDS[found[2]])
