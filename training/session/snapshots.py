"""How often the weights of a training are put aside while all is well."""

from __future__ import annotations

SNAPSHOT_BYTES = 64 * 10**9
"""Bytes that snapshots may write in one training: ten of a model of 1.6 billion parameters in
float32, two of one of 8 billion. Disks wear, and a training waits for each."""
_FEWEST = 2


def snapshots_within(wanted: int, weights: int) -> int:
    """How many snapshots of ``weights`` bytes a training takes where ``wanted`` are.

    It follows from the config and the model alone, so that the weights that a guard goes back to
    are the same ones on every machine.
    """
    return min(wanted, max(_FEWEST, SNAPSHOT_BYTES // max(weights, 1)))
