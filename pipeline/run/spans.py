"""Several blocks of a round at once, where nobody waits for an answer: what they cost beyond their
rows is then paid once for many."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from prefloop.data.storage.packed_folder import PackedFolder
from prefloop.pipeline.run.run_dir import RoundDir

_PROMPTS = 2_048
_BYTES = 16 << 20
"""Of answers and votes, on disk: some 64 MiB in memory."""
_MANY = 64
"""Blocks from which on their files are put together: fewer are read as fast."""


def spans_of(folder: RoundDir, blocks: Sequence[int], *weighed: PackedFolder) -> list[list[int]]:
    """``blocks`` in groups of some two thousand prompts, of fewer where what is ``weighed``, by
    default candidates and votes, takes much room."""
    prompts = folder.prompts.indices()
    block = max(folder.prompts.rows(prompts[:1]), 1)  # all but the last one have as many
    most = max(_PROMPTS // block, 1)
    sizes = Counter[int]()
    for shards in weighed or (folder.candidates, folder.votes):
        sizes.update(shards.sizes())
    found: list[list[int]] = []
    size = 0
    for index in blocks:
        size += sizes[index]
        if not found or len(found[-1]) == most or size > _BYTES:
            found.append([])
            size = sizes[index]
        found[-1].append(index)
    return found


def put_together(folder: RoundDir, shards: PackedFolder) -> None:
    """Let the blocks of a stage that is done share files, where there are many: a small block is
    there for what a kill repeats, and nobody goes on in the middle of one any more."""
    blocks = shards.indices()
    if len(blocks) < _MANY:
        return
    for span in spans_of(folder, blocks, shards):
        shards.put_together(span)
