"""Prompts in: read, quarantine, hold some out, drop duplicates and overlaps.

Invariant: every row read is in exactly one of the four tables, in the order of its source.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from prefloop.data.arrays import Bools
from prefloop.data.config import PromptsConfig
from prefloop.data.errors import InputError
from prefloop.data.hashing import content_id, derive_seed
from prefloop.data.prompts.dedup import near_duplicates, normalise
from prefloop.data.prompts.evaluation_sets import (
    KnownPrompt,
    KnownPrompts,
    read_evaluation_set,
    user_turns,
)
from prefloop.data.prompts.source_table import SourceRows, read_source
from prefloop.data.schemas import DROPPED

logger = logging.getLogger(__name__)

NOT_DRAWN = "not_drawn"
"""Reason of prompts that a source has beyond its size or weight."""
_DETAIL_CHARS = 500
_ROUNDING = 1e-9
_BLOCK = 1000


@dataclass(frozen=True)
class PromptTables:
    """``read`` = rows of ``train`` + ``heldout`` (both of schema PROMPT) + ``quarantine``
    (QUARANTINE) + ``dropped`` (DROPPED)."""

    train: pa.Table
    heldout: pa.Table
    quarantine: pa.Table
    dropped: pa.Table
    read: int


def load_prompts(
    config: PromptsConfig, *, seed: int, train: SourceRows | None = None
) -> PromptTables:
    """Read and sort out the prompts of a run; the same input and seed give the same tables.
    ``train`` are the train prompts where they were read already.

    A prompt is dropped for the first of these reasons: ``exact_duplicate`` (of an earlier row;
    white space at the ends of turns does not count), ``overlap:heldout`` and ``overlap:NAME``
    (train prompts only; the user's turns are compared, see :class:`KnownPrompts`),
    ``near_duplicate`` (of an earlier row with the same turns before its last one), ``not_drawn``
    (beyond the size or the weight of its source). Exact duplicates are dropped always: they have
    one id.

    Raises ``InputError`` for sources that cannot be read, for configured columns that no row has,
    and with ``on_bad_row: fail`` for the first bad row. A bad row of an evaluation set always
    raises it, because a prompt that overlaps with that row would go unnoticed.
    """
    known_prompts = partial(
        KnownPrompts, threshold=config.overlap_threshold, ngram=config.near_duplicates.ngram
    )
    evaluation_sets = [
        (each.name, known_prompts(read_evaluation_set(each.source)))
        for each in config.exclude_overlap
    ]
    sources = []
    if config.heldout is not None:
        sources.append(read_source(config, config.heldout, "prompts.heldout", {}))
    first: dict[str, str] = {}
    if train is not None:
        sources.append(train)
    else:
        for key, source in config.train_sources.items():
            sources.append(read_source(config, source, key, first))
    sieve = _Sieve(sources)
    if config.heldout is not None:
        heldout = np.arange(len(sieve.table)) < len(sources[0].prompts)
    else:
        heldout = _draw(sieve, config.heldout_share, seed)

    def near(table: pa.Table) -> Iterable[str | None]:
        return _near_hits(table, config, seed)

    if config.near_duplicates.enabled:
        sieve.drop("near_duplicate", heldout, near)
    named = _known(sieve.table.filter(pa.array(heldout)))
    kept = known_prompts(_known(sieve.kept(heldout)), same_only=named)
    for name, known in (("heldout", kept), *evaluation_sets):
        sieve.drop(f"overlap:{name}", ~heldout, _repeats_of(known))
    if config.near_duplicates.enabled:
        sieve.drop("near_duplicate", ~heldout, near)
    for among, detail, count in _shares(config, sieve, ~heldout):
        sieve.drop(NOT_DRAWN, among, _all_but(count, detail, seed))
    return PromptTables(
        train=sieve.kept(~heldout),
        heldout=sieve.kept(heldout),
        quarantine=pa.concat_tables([source.quarantine for source in sources]),
        dropped=sieve.dropped(),
        read=sum(source.read for source in sources),
    )


def _shares(config: PromptsConfig, sieve: _Sieve, among: Bools) -> Iterator[tuple[Bools, str, int]]:
    """The prompts of each source that is drawn from, what it says of them, and how many it keeps.

    Raises ``InputError`` where a source has a weight and no prompt.
    """
    places = list(sieve.sources)[-len(config.train_sources) :]
    found = {
        key: (source, among & (sieve.sources_of_rows == place))
        for place, (key, source) in zip(places, config.train_sources.items(), strict=True)
    }
    left = {key: int((rows & sieve.alive).sum()) for key, (_, rows) in found.items()}
    units = []
    for key, (source, _) in found.items():
        if source.weight is not None:
            units.append(left[key] / source.weight)
            if not left[key]:
                raise InputError(
                    f"{key}: no prompt of {source.path} is left, so no share of it can be drawn: "
                    "see why they were dropped without its weight, or leave the source out"
                )
    for key, (source, rows) in found.items():
        if source.weight is not None:
            count = max(int(min(units) * source.weight + _ROUNDING), 1)
            yield rows, f"{key}.weight takes {count:,} of {left[key]:,} prompts", count
        elif source.size is not None:
            if source.size > left[key]:
                logger.warning(
                    "%s.size is %s, and only %s prompts are left of it",
                    key,
                    f"{source.size:,}",
                    f"{left[key]:,}",
                )
            yield rows, f"{key}.size takes {source.size:,} of {left[key]:,} prompts", source.size


def _all_but(count: int, detail: str, seed: int) -> Callable[[pa.Table], Iterable[str | None]]:
    """Finds all prompts but ``count``, drawn by seed: a prompt's lot hangs on nothing else."""

    def find(table: pa.Table) -> Iterable[str | None]:
        ids = table["prompt_id"].to_pylist()
        order = sorted(range(len(ids)), key=lambda row: derive_seed(seed, NOT_DRAWN, ids[row]))
        drawn = set(order[:count])
        return [None if row in drawn else detail for row in range(len(ids))]

    return find


class _Sieve:
    """All prompts in order; rows are dropped for one reason after the other."""

    def __init__(self, sources: Sequence[SourceRows]) -> None:
        self.table: pa.Table = pa.concat_tables([source.prompts for source in sources])
        self.alive: Bools = np.ones(len(self.table), dtype=bool)
        self.sources = range(len(sources))
        self.sources_of_rows = np.repeat(
            np.arange(len(sources)), [len(source.prompts) for source in sources]
        )
        self._why: dict[int, tuple[str, str]] = {}
        start = 0
        for source in sources:
            for row, earlier in source.repeats.items():
                self._drop_row(start + row, "exact_duplicate", earlier)
            start += len(source.prompts)

    def drop(
        self, reason: str, among: Bools, find: Callable[[pa.Table], Iterable[str | None]]
    ) -> None:
        """Drop the rows of ``among`` for which ``find`` gives a detail."""
        rows = np.flatnonzero(among & self.alive)
        for row, detail in zip(rows.tolist(), find(self.kept(among)), strict=True):
            if detail is not None:
                self._drop_row(row, reason, detail)

    def kept(self, among: Bools) -> pa.Table:
        """The rows of ``among`` that are left: schema PROMPT."""
        return self.table.filter(pa.array(among & self.alive))

    def dropped(self) -> pa.Table:
        """The rows dropped, each with its reason: schema DROPPED."""
        rows = self.table.filter(pa.array(~self.alive))
        why = [self._why[row] for row in np.flatnonzero(~self.alive).tolist()]
        columns = {name: rows[name] for name in ("prompt_id", "source", "row", "messages")}
        columns["reason"] = pa.array([reason for reason, _ in why], pa.string())
        columns["detail"] = pa.array([detail[:_DETAIL_CHARS] for _, detail in why], pa.string())
        return pa.table([columns[name] for name in DROPPED.names], schema=DROPPED)

    def _drop_row(self, row: int, reason: str, detail: str) -> None:
        self.alive[row] = False
        self._why[row] = (reason, detail)


def _draw(sieve: _Sieve, share: float, seed: int) -> Bools:
    """Which prompts to hold out. A prompt's lot hangs on nothing but itself and the seed, except
    that of two or more prompts at least one is held out and at least one is not."""
    chosen = np.zeros(len(sieve.table), dtype=bool)
    ids = sieve.table["prompt_id"].filter(pa.array(sieve.alive)).to_pylist()
    if share == 0 or len(ids) < 2:
        return chosen
    lots = np.array([derive_seed(seed, "heldout", each) for each in ids], dtype=np.int64)
    drawn = lots < share * 2**31
    if drawn.all() or not drawn.any():
        drawn = lots == lots.min()
    chosen[sieve.alive] = drawn
    return chosen


def _near_hits(table: pa.Table, config: PromptsConfig, seed: int) -> Iterator[str | None]:
    """For each prompt the id of the earlier one that it nearly repeats."""
    ids = table["prompt_id"]
    hits = near_duplicates(
        _LastTurns(table),
        config.near_duplicates,
        seed=seed,
        groups=_contexts(table),
    )
    return (None if hit is None else ids[hit].as_py() for hit in hits)


class _LastTurns:
    """What the last turn of each conversation says: one after the other a block at a time, and any
    of them by itself."""

    def __init__(self, table: pa.Table) -> None:
        self._messages = table["messages"]
        self._block = -1
        self._texts: list[str] = []

    def __len__(self) -> int:
        return len(self._messages)

    def __getitem__(self, number: int, /) -> str:
        block = number // _BLOCK
        if block == self._block + 1:
            rows = self._messages.slice(block * _BLOCK, _BLOCK).combine_chunks()
            contents, ends = rows.values.field("content"), rows.offsets.to_numpy()[1:]
            self._texts = contents.take(pa.array(ends - 1)).to_pylist()
            self._block = block
        elif block != self._block:
            return str(self._messages[number][-1]["content"].as_py())
        return self._texts[number % _BLOCK]


def _contexts(table: pa.Table) -> Iterator[str | None]:
    for batch in table.select(["messages", "tools"]).to_batches(max_chunksize=_BLOCK):
        turns = pc.list_value_length(batch["messages"]).to_pylist()
        for row, (count, tools) in enumerate(zip(turns, batch["tools"].to_pylist(), strict=True)):
            if count == 1 and tools is None:  # most prompts
                yield None
            else:
                yield _context(batch["messages"][row].as_py(), tools)


def _context(messages: list[dict[str, str]], tools: str | None) -> str | None:
    """Stands for the turns before the last and the tools: others there make it another prompt."""
    parts = [] if tools is None else [tools]
    parts += [normalise(message[key]) for message in messages[:-1] for key in ("role", "content")]
    return content_id(*parts) if parts else None


def _repeats_of(known: KnownPrompts) -> Callable[[pa.Table], Iterable[str | None]]:
    return lambda table: (known.find(user_turns(each)) for each in _conversations(table))


def _known(table: pa.Table) -> list[KnownPrompt]:
    ids = table["prompt_id"].to_pylist()
    return [
        KnownPrompt(user_turns(messages), prompt_id)
        for prompt_id, messages in zip(ids, _conversations(table), strict=True)
    ]


def _conversations(table: pa.Table) -> Iterator[list[dict[str, str]]]:
    for batch in table.select(["messages"]).to_batches(max_chunksize=10_000):
        yield from batch["messages"].to_pylist()
