"""Several blocks of a round at once, where nobody waits for an answer: what they cost beyond their
rows is then paid once for many."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import pyarrow as pa

from prefloop.data.packed_folder import PackedFolder
from prefloop.pipeline.run.run_dir import RoundDir

_PROMPTS = 2_048
_BYTES = 16 << 20
"""Of answers and votes, on disk."""
_IN_MEMORY = 64 << 20
"""About as many bytes of texts."""
_MANY = 64
"""Blocks from which on their files are put together: fewer are read as fast."""


@dataclass(frozen=True)
class SpanUnits:
    """The blocks of a stage in units of work of one span or several. A unit is called by its first
    block. Which blocks are in it depends on none that is missing or there."""

    spans: Mapping[int, Sequence[Sequence[int]]]
    """Of each unit."""
    there: frozenset[int] = frozenset()
    """Blocks that nobody has to write."""

    @staticmethod
    def of(
        spans: Sequence[Sequence[int]], there: Iterable[int] = (), *, of_unit: int = 1
    ) -> SpanUnits:
        """``spans``, so many of them to a unit."""
        units = [spans[begin : begin + of_unit] for begin in range(0, len(spans), of_unit)]
        return SpanUnits({unit[0][0]: unit for unit in units}, frozenset(there))

    def blocks(self, unit: int) -> list[int]:
        """The blocks of a unit."""
        return list(chain.from_iterable(self.spans[unit]))

    def missing(self, unit: int) -> list[int]:
        """Those of them that are to be written."""
        return [index for index in self.blocks(unit) if index not in self.there]

    def details(self) -> dict[str, Any]:
        """It, as JSON has it: blocks as the bounds of rows without a gap."""
        units = [list(map(_bounds, spans)) for spans in self.spans.values()]
        return {"units": units, "there": _bounds(sorted(self.there))}

    @staticmethod
    def read(details: Mapping[str, Any]) -> SpanUnits:
        """What :meth:`details` gave."""
        units = [list(map(_within, spans)) for spans in details["units"]]
        return SpanUnits(
            {spans[0][0]: spans for spans in units}, frozenset(_within(details["there"]))
        )


def without_gap(blocks: Sequence[int]) -> list[tuple[int, int]]:
    """The first and the last of each row without a gap in ``blocks``, which ascend."""
    found: list[tuple[int, int]] = []
    for index in blocks:
        if found and found[-1][1] == index - 1:
            found[-1] = found[-1][0], index
        else:
            found.append((index, index))
    return found


def _bounds(blocks: Sequence[int]) -> list[int]:
    return list(chain.from_iterable(without_gap(blocks)))


def _within(bounds: Sequence[int]) -> list[int]:
    pairs = zip(bounds[::2], bounds[1::2], strict=True)
    return [index for first, last in pairs for index in range(first, last + 1)]


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


def replace_blocks(
    shards: PackedFolder,
    blocks: Sequence[int],
    make: Callable[[int], pa.Table],
    *,
    block_size: int,
) -> None:
    """Write what ``make`` gives for each of ``blocks`` in the place of what is there, and where
    there are many, several in a file."""
    at_once = max(_PROMPTS // block_size, 1) if len(blocks) >= _MANY else 1
    gathered: dict[int, pa.Table] = {}
    for index in blocks:
        gathered[index] = make(index)
        is_large = sum(table.nbytes for table in gathered.values()) > _IN_MEMORY
        if len(gathered) < at_once and not is_large and index != blocks[-1]:
            continue
        if len(gathered) == 1:
            shards.replace(index, gathered[index])
        else:
            parts = list(gathered.values())
            shards.remove(list(gathered))
            shards.write_together(list(gathered), pa.concat_tables(parts), list(map(len, parts)))
        gathered = {}


def put_together(folder: RoundDir, shards: PackedFolder) -> None:
    """Let the blocks of a stage that is done share files, where there are many: a small block is
    there for what a kill repeats, and nobody goes on in the middle of one any more."""
    blocks = shards.indices()
    if len(blocks) < _MANY:
        return
    shards.put_together(spans_of(folder, blocks, shards))
