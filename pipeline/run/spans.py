"""Several blocks of a round at once, where nobody waits for an answer: what they cost beyond their
rows is then paid once for many."""

from __future__ import annotations

from collections.abc import Sequence

from prefloop.pipeline.run.run_dir import RoundDir

_PROMPTS = 2_048
_BYTES = 16 << 20
"""Of answers, on disk: some 64 MiB in memory."""


def spans_of(folder: RoundDir, blocks: Sequence[int]) -> list[list[int]]:
    """``blocks`` in groups of some two thousand prompts, of fewer where their answers are long."""
    prompts = folder.prompts.indices()
    block = max(folder.prompts.rows(prompts[:1]), 1)  # all but the last one have as many
    most = max(_PROMPTS // block, 1)
    sizes = folder.candidates.sizes()
    found: list[list[int]] = []
    size = 0
    for index in blocks:
        size += sizes.get(index, 0)
        if not found or len(found[-1]) == most or size > _BYTES:
            found.append([])
            size = sizes.get(index, 0)
        found[-1].append(index)
    return found
