"""The first stage: read prompts once, and draw those of each round."""

from __future__ import annotations

import logging
from collections.abc import Mapping

import numpy as np
import pyarrow as pa

from prefloop.data.config import PromptsConfig
from prefloop.data.errors import NothingCameOut, StorageError
from prefloop.data.hashing import derive_seed
from prefloop.data.packed_folder import PackedFolder
from prefloop.data.preferences.answer_source import AnswerSource
from prefloop.data.prompts.load import PromptTables
from prefloop.data.prompts.no_prompts import why_no_prompt
from prefloop.data.shards import ShardFolder, atomic_write_json
from prefloop.pipeline.run.context import RoundContext, RunContext
from prefloop.pipeline.run.run_dir import RunDir, RunError, Stopwatch
from prefloop.pipeline.run.spans import replace_blocks
from prefloop.pipeline.stages.given_rows import (
    load_with_answers,
    read_given_counts,
    write_given,
)

logger = logging.getLogger(__name__)


def read_prompts(
    context: RunContext,
    prompts: PromptsConfig,
    *,
    block_size: int,
    given: AnswerSource | None = None,
) -> None:
    """Read, quarantine and deduplicate the prompts into the run directory; once for a run. With
    them go the answers that are ``given``.

    Where shards were lost since, they are made again from the same source. Raises ``InputError``
    for unusable input, ``NothingCameOut`` if no prompt is left, and :class:`RunError` if the source
    now gives other prompts than those that the run was begun with.
    """
    run = context.run
    lost = None
    if run.prompt_counts.exists():
        lost = _lost(run)
        if lost is None and given is not None and not run.given_counts.exists():
            lost = f"{run.given_counts} is missing"
        if lost is None:
            return
        logger.warning("%s: the prompts are read again from their source", lost)
    watch = Stopwatch()
    tables, answers = load_with_answers(prompts, given, seed=context.seed)
    counts = {
        "read": tables.read,
        "kept": len(tables.train),
        "heldout": len(tables.heldout),
        "dropped": len(tables.dropped),
        "quarantined": len(tables.quarantine),
    }
    if run.begun():
        _refuse_other_prompts(run, counts, tables, block_size)
    write_blocks(run.quarantine, tables.quarantine, max(len(tables.quarantine), 1))
    write_blocks(run.dropped, tables.dropped, max(len(tables.dropped), 1))
    if not len(tables.train):
        raise NothingCameOut(
            f"no usable prompt among the {tables.read} read: {len(tables.quarantine)} quarantined "
            f"(reasons in {run.quarantine.folder}), {len(tables.dropped)} dropped, "
            f"{len(tables.heldout)} held out"
            f"{why_no_prompt(tables, prompts)}"
        )
    write_blocks(run.heldout, tables.heldout, block_size)
    write_blocks(run.prompts, tables.train, block_size)
    if answers:
        write_given(run, answers, tables.train, block_size)
    atomic_write_json(run.prompt_counts, counts)
    run.note("prompts", 0, watch.lap(), prompts=tables.read)


def _lost(run: RunDir) -> str | None:
    """Which shards of prompts have not the rows that were written, by their footers; null: none."""
    counts = run.read_prompt_counts()
    folders: dict[str, ShardFolder] = {
        "kept": run.prompts, "heldout": run.heldout, "dropped": run.dropped,
        "quarantined": run.quarantine,
    }  # fmt: skip
    if run.given_counts.exists():
        folders["used"] = run.given
        counts["used"] = read_given_counts(run)["used"]
    for name, shards in folders.items():
        try:
            rows = shards.rows()
        except StorageError as error:
            return str(error).partition(": cannot be read")[0] + " is damaged"
        if rows != counts[name]:
            return f"{shards.folder} holds {rows:,} rows where {counts[name]:,} were written"
    return None


def _refuse_other_prompts(
    run: RunDir, counts: Mapping[str, int], tables: PromptTables, block_size: int
) -> None:
    """Raise ``RunError`` where what is left of the run's prompts is not from this reading."""
    other = run.prompt_counts.exists() and run.read_prompt_counts() != counts
    for shards, table in ((run.prompts, tables.train), (run.heldout, tables.heldout)):
        for index in shards.indices():
            try:
                kept = shards.read(index)
            except StorageError:
                continue  # written again
            part = table.slice(index * block_size, block_size)
            other = other or not kept.equals(part.select(kept.schema.names).cast(kept.schema))
    if other:
        raise RunError(
            f"{run.root}: prompts of it were lost or damaged, and their source now gives others: "
            "put the old version of the source back, or use a new --run-dir"
        )


def draw_prompts(
    context: RoundContext, *, per_round: int | None, per_leg: int | None, block_size: int
) -> int:
    """Write the prompts of a round in blocks of ``block_size``; returns the number of blocks.

    Where answers are sampled while training, a block is what one leg of it samples (``per_leg``),
    and prompts that fill none are left out. Raises ``RunError`` where there are not enough for one.
    """
    run, folder = context.run, context.folder
    # Shards of an earlier start, which nothing was sampled from, may be of another config.
    anew = not folder.candidates.indices()
    total, size = run.prompts.rows(), per_leg or block_size
    count = round_size(total, per_round=per_round, per_leg=per_leg)
    if count is None:
        blocks = run.prompts.indices()
        wanted = blocks if anew else folder.prompts.missing(blocks)
        replace_blocks(folder.prompts, wanted, run.prompts.read, block_size=block_size)
        if anew:
            folder.prompts.keep_first(len(blocks))
        return len(blocks)
    if not count:
        raise RunError(
            f"a leg of this training samples {size} prompts, and there are only {total} (or fewer "
            "in sample.prompts_per_round): lower train.batch_size, gradient_accumulation or "
            "online_steps"
        )
    rows = round_rows(total, count, context.index, context.seed)
    starts = range(0, len(rows), size)
    if anew or folder.prompts.missing(range(len(starts))):
        write_blocks(folder.prompts, run.prompts.table().take(pa.array(rows)), size)
    return len(starts)


def round_size(total: int, *, per_round: int | None, per_leg: int | None) -> int | None:
    """How many of ``total`` prompts a round draws; null: all of them, in their order."""
    if per_round is None and per_leg is None:
        return None
    count = min(per_round or total, total)
    return count - count % per_leg if per_leg else count


def round_rows(total: int, count: int, round_index: int, seed: int) -> np.ndarray:
    """Rows (int64 [count]) that round ``round_index`` draws out of ``total`` prompts.

    Every prompt is used once before any is used again, and none twice in one round.
    """
    queue: list[int] = []
    drawn: list[int] = []
    epoch = 0
    for _ in range(round_index + 1):
        drawn, queue = queue[:count], queue[count:]
        while len(drawn) < count:
            shuffled = np.random.default_rng(derive_seed(seed, "draw", epoch)).permutation(total)
            epoch += 1
            in_round = set(drawn)
            fresh = [int(row) for row in shuffled if int(row) not in in_round]
            missing = count - len(drawn)
            taken = set(fresh[:missing])
            drawn += fresh[:missing]
            # What this round could not take a second time waits for the next one.
            queue = [int(row) for row in shuffled if int(row) not in taken]
    return np.asarray(drawn, dtype=np.int64)


def write_blocks(folder: PackedFolder, table: pa.Table, block_size: int) -> None:
    """Write ``table`` in shards of ``block_size`` rows; of an earlier writing nothing stays."""
    blocks = range(-(-len(table) // block_size))

    def rows_of(index: int) -> pa.Table:
        return table.slice(index * block_size, block_size)

    replace_blocks(folder, blocks, rows_of, block_size=block_size)
    folder.keep_first(len(blocks))
