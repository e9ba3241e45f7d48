"""Deciding a run's pairs again after its votes changed, and writing the dataset anew."""

from __future__ import annotations

import logging
import shutil
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import pyarrow as pa

from prefloop.data.shards import ShardFolder, atomic_write_text
from prefloop.pipeline.blocking import wait_for
from prefloop.pipeline.config import RunConfig
from prefloop.pipeline.report.card import write_card
from prefloop.pipeline.report.run_page import write_report
from prefloop.pipeline.run.context import RoundContext, RunContext
from prefloop.pipeline.run.round_jury import with_labels_of
from prefloop.pipeline.run.run_dir import RoundDir, RunDir
from prefloop.pipeline.stages.filter import filter_round
from prefloop.pipeline.stages.write import write_round

logger = logging.getLogger(__name__)

_COMPARED = ["pair_id", "chosen_id", "kept"]
_CHANGES = ("kept_before", "kept", "added", "removed", "turned")


@dataclass(frozen=True)
class Redecided:
    """What deciding a round again did to the pairs that the dataset is made of."""

    round: int
    kept_before: int
    kept: int
    added: int
    """Pairs that were not kept before, and are now."""
    removed: int
    """Pairs that were kept before, and are not now."""
    turned: int
    """Pairs kept before and now whose chosen and rejected answers changed places."""
    trained: bool
    """Whether the round's policy was trained on the dataset as it was before."""

    def lines(self) -> list[str]:
        """For the terminal."""
        said = [
            f"round {self.round}: {self.kept:,} pairs kept, {self.kept_before:,} before: "
            f"{self.added:,} added, {self.removed:,} removed, {self.turned:,} turned round"
        ]
        if self.trained and self.added + self.removed + self.turned:
            said.append(
                "  its policy was trained on the dataset as it was: prefloop train makes a new one"
            )
        return said


def redecide(config: RunConfig, run: RunDir) -> list[Redecided]:
    """Decide, filter and write every round that was decided before; the caller holds the lock.

    Nobody is asked anything and no policy is trained. Killed in the middle, it can be called
    again, and still compares with the first state.
    """
    context = RunContext.of(config, run)
    mark_undecided(run)
    # The card says what the files hold: where this ends in the middle, it must not say the old.
    run.card.unlink(missing_ok=True)
    found = [
        _redecide_round(config, context.round(folder.index))
        for folder in run.rounds()
        if folder.decisions.indices() or folder.decisions_before.folder.exists()
    ]
    if found:
        write_card(config, run)
        write_report(run)
    run.undecided.unlink(missing_ok=True)
    return found


def mark_undecided(run: RunDir) -> None:
    """Say on disk that votes change, before the first does: where a kill comes before all pairs are
    decided by them, the next command on the directory knows."""
    if not run.undecided.exists():
        atomic_write_text(
            run.undecided, "Votes were changed. `prefloop run` decides the pairs by them again.\n"
        )


def finish_deciding(config: RunConfig, run: RunDir) -> list[Redecided]:
    """Decide again where votes or settings changed and the pairs were not decided by them yet; the
    caller holds the lock."""
    if not run.decides_again():
        return []
    logger.warning("votes or settings of %s changed: its pairs are decided again", run.root)
    found = redecide(config, run)
    for line in (line for each in found for line in each.lines()):
        logger.warning("%s", line)
    return found


def _redecide_round(config: RunConfig, context: RoundContext) -> Redecided:
    folder = context.folder
    config = with_labels_of(config, folder)
    before = folder.decisions_before
    was_written = folder.written.exists()
    if not before.folder.exists():
        folder.decisions.folder.rename(before.folder)
    folder.forget_decisions()  # the dataset's files stand until the new ones do
    wait_for(partial(filter_round, context, config.label, config.filter))
    # Of a round that is not labelled or trained to its end, the rest is still to come.
    if was_written or folder.votes.indices() == folder.prompts.indices():
        wait_for(
            partial(
                write_round, context, test_share=config.write.test_share,
                unpaired=config.writes_unpaired, every_answer=config.write.every_answer,
            )
        )  # fmt: skip
    change = _compare(folder, before, folder.decisions.indices())
    shutil.rmtree(before.folder)
    return change


def _compare(folder: RoundDir, before: ShardFolder, indices: Sequence[int]) -> Redecided:
    counts: Counter[str] = Counter(dict.fromkeys(_CHANGES, 0))
    for index in indices:
        if before.exists(index):
            counts += compare_kept(
                before.read(index, _COMPARED), folder.decisions.read(index, _COMPARED)
            )
    numbers = {name: counts[name] for name in _CHANGES}
    return Redecided(round=folder.index, trained=folder.policy.exists(), **numbers)


def compare_kept(old: pa.Table, new: pa.Table) -> Counter[str]:
    """How many pairs were kept and are, came, went and turned round, by the names in
    :class:`Redecided`, from two tables of decisions; pairs are matched by their id."""
    was = {row["pair_id"]: row["chosen_id"] for row in _kept(old)}
    now = {row["pair_id"]: row["chosen_id"] for row in _kept(new)}
    both = was.keys() & now.keys()
    return Counter(
        kept_before=len(was),
        kept=len(now),
        added=len(now) - len(both),
        removed=len(was) - len(both),
        turned=sum(was[pair] != now[pair] for pair in both),
    )


def _kept(decisions: pa.Table) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = decisions.filter(decisions["kept"]).select(_COMPARED).to_pylist()
    return rows
