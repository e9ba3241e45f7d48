"""Where a swapped policy is checked: on the GPU only where the engine left room for it."""

from __future__ import annotations

from pathlib import Path

import pytest

from prefloop.pipeline.engines.policy_check import has_room

GIB = 2**30


@pytest.mark.parametrize(
    ("stored", "free", "fits"), [(1000, 2 * GIB, True), (1000, GIB, False), (0, 9 * GIB, False)]
)
def test_room_for_the_check(tmp_path: Path, stored: int, free: int, fits: bool) -> None:
    if stored:
        (tmp_path / "model.safetensors").write_bytes(bytes(stored))
    assert has_room(str(tmp_path), free) is fits
