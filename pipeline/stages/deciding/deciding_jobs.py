"""What the filter stage has done with spans of blocks, here or by workers of a cluster: votes are
counted for a jury that is fitted to them, pairs are decided, and decisions are balanced."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import accumulate
from typing import Any

import numpy as np
import pyarrow as pa

from prefloop.data.arrays import as_arrow, as_numpy
from prefloop.data.packed_folder import PackedFolder
from prefloop.data.shards import file_of
from prefloop.labelers.config import FilterConfig, LabelConfig, LengthBalance
from prefloop.labelers.decisions.filters import BalanceRows, Cutoff, apply_balance
from prefloop.labelers.jury.round_jury import RoundJury
from prefloop.labelers.jury.verdict_table import VOTE_COLUMNS
from prefloop.pipeline.executors.block_task import BlockFacts, BlockJob, BlockTask, Make, Tables
from prefloop.pipeline.run.context import RoundContext
from prefloop.pipeline.run.round_jury import count_votes, jury_details, jury_in
from prefloop.pipeline.run.spans import SpanUnits, without_gap
from prefloop.pipeline.stages.deciding.decided_blocks import decide_blocks

FILTER = "filter"
"""Name of the stage."""
_REMEDY = (
    "let workers have more memory (fewer of them on a node: raise executor.cpus), or change "
    "`filter`"
)


@dataclass(frozen=True)
class Deciding:
    """By what pairs are decided, kept and dropped."""

    label: LabelConfig
    filters: FilterConfig
    jury: RoundJury

    @property
    def balance(self) -> LengthBalance | None:
        """The filter that needs all pairs of a round, where it is set."""
        return next((one for one in self.filters.filters if isinstance(one, LengthBalance)), None)


def counting_job(context: RoundContext, label: LabelConfig, units: SpanUnits) -> BlockJob:
    """The votes of each unit counted, for the fit of a jury."""

    def made(unit: int) -> Tables:
        return count_votes(label, context.folder.votes.iter(VOTE_COLUMNS, units.blocks(unit)))

    details = {"label": label.model_dump(mode="json")} | units.details()
    return _job(context, details, CountedVotes(), made)


def deciding_job(context: RoundContext, deciding: Deciding, units: SpanUnits) -> BlockJob:
    """The decisions on each unit that are missing, and what a balance has to know of all of its
    decisions, where there is one."""
    folder = context.folder
    shards = folder.unbalanced if deciding.balance else folder.decisions

    def made(unit: int) -> Tables:
        blocks = units.blocks(unit)
        if not units.missing(unit):
            return (shards.together(blocks),)
        table, rows = decide_blocks(
            context, blocks, deciding.label, deciding.filters, deciding.jury
        )
        return table, _rows(rows)

    details = {
        "label": deciding.label.model_dump(mode="json"),
        "filter": deciding.filters.model_dump(mode="json"),
        "jury": jury_details(deciding.jury),
    }
    shelf = DecidedSpans(shards, units, is_weighed=deciding.balance is not None)
    return _job(context, details | units.details(), shelf, made)


def balancing_job(context: RoundContext, cutoff: Cutoff | None, units: SpanUnits) -> BlockJob:
    """The decisions on each unit that are missing, from those that are not balanced."""
    unbalanced = context.folder.unbalanced

    def made(unit: int) -> Tables:
        table, rows = unbalanced.gathered(units.blocks(unit))
        return apply_balance(table, cutoff), _rows(rows)

    details = {"cutoff": cutoff and asdict(cutoff)} | units.details()
    return _job(context, details, DecidedSpans(context.folder.decisions, units), made)


def filter_job(context: RoundContext, details: Mapping[str, Any]) -> BlockJob:
    """The job whose task has ``details``."""
    units = SpanUnits.read(details)
    if "cutoff" in details:
        cutoff = details["cutoff"]
        return balancing_job(context, cutoff and Cutoff(**cutoff), units)
    label = LabelConfig.model_validate(details["label"])
    if "filter" not in details:
        return counting_job(context, label, units)
    filters = FilterConfig.model_validate(details["filter"])
    deciding = Deciding(label, filters, jury_in(label, details["jury"]))
    return deciding_job(context, deciding, units)


@dataclass(frozen=True)
class CountedVotes:
    """Counts of votes, which are added up and not kept; see
    ``prefloop.pipeline.executors.block_task.Shelf``."""

    def facts(self, index: int, tables: Tables) -> BlockFacts:
        """The counts."""
        return BlockFacts(index, {}, found=tables)

    async def keep(self, index: int, tables: Tables) -> bool:
        """Nothing is written."""
        del index, tables
        return True

    def kept(self, index: int) -> Tables | None:
        """Nothing is."""
        del index
        return None


@dataclass(frozen=True)
class DecidedSpans:
    """Decisions by units of spans: a table of them all and how many each block has, or the first
    alone where none is to be written; see ``prefloop.pipeline.executors.block_task.Shelf``."""

    shards: PackedFolder
    units: SpanUnits
    is_weighed: bool = False
    """Whether a balance has to know of them."""

    def facts(self, index: int, tables: Tables) -> BlockFacts:
        """What a balance has to know of them."""
        if not self.is_weighed:
            return BlockFacts(index, {})
        return BlockFacts(index, {}, found=(_balance_table(BalanceRows.of(tables[0])),))

    async def keep(self, index: int, tables: Tables) -> bool:
        """Write those that are missing."""
        missing = self.units.missing(index)
        if not missing:
            return False
        await asyncio.to_thread(self._write, index, missing, *tables)
        return True

    def kept(self, index: int) -> Tables | None:
        """All of them, where none is to be written any more."""
        files = [
            file_of(first) if first == last else file_of(first, last)
            for first, last in without_gap(self.units.missing(index))
        ]
        if not all((self.shards.folder / file).exists() for file in files):
            return None
        return (self.shards.together(self.units.blocks(index)),)

    def _write(self, index: int, missing: Sequence[int], table: pa.Table, rows: pa.Table) -> None:
        blocks, counts = self.units.blocks(index), rows["rows"].to_pylist()
        if len(missing) < len(blocks):
            begins = dict(zip(blocks, accumulate(counts, initial=0), strict=False))
            of_block = dict(zip(blocks, counts, strict=True))
            parts = [table.slice(begins[one], of_block[one]) for one in missing]
            table, counts = pa.concat_tables(parts), [of_block[one] for one in missing]
        self.shards.write_together(missing, table, counts)


def balance_rows_in(table: pa.Table) -> BalanceRows:
    """What the facts of a unit say of its decisions."""
    margins, pairs, longer = (as_numpy(column) for column in table.columns)
    return BalanceRows(margins, pairs, longer)


def _balance_table(rows: BalanceRows) -> pa.Table:
    columns = {"margin": rows.margins, "pair": rows.pairs, "longer": rows.longer}
    return pa.table({name: as_arrow(values) for name, values in columns.items()})


def _rows(counts: Sequence[int]) -> pa.Table:
    return pa.table({"rows": as_arrow(np.array(counts, np.int64))})


def _job(
    context: RoundContext,
    details: Mapping[str, Any],
    shelf: CountedVotes | DecidedSpans,
    made: Callable[[int], Tables],
) -> BlockJob:
    async def here() -> Make:
        async def make(unit: int) -> Tables:
            return await asyncio.to_thread(made, unit)

        return make

    task = BlockTask(FILTER, context.run.root, context.index, details, _REMEDY)
    return BlockJob(task, shelf, here, in_flight=1)
