"""Deciding a run's pairs again after its votes changed, and writing the dataset anew."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Sequence
from dataclasses import dataclass

import pyarrow.compute as pc

from prefloop.data.shards import ShardFolder, atomic_write_text
from prefloop.pipeline.config import RunConfig
from prefloop.pipeline.report.card import write_card
from prefloop.pipeline.report.run_page import write_report
from prefloop.pipeline.run.context import RoundContext, RunContext
from prefloop.pipeline.run.run_dir import RoundDir, RunDir
from prefloop.pipeline.stages.filter import filter_round
from prefloop.pipeline.stages.write import write_round

logger = logging.getLogger(__name__)

_COMPARED = ["pair_id", "chosen_id", "kept"]


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
    """Do the rest where a kill came between changed votes and their decisions; the caller holds
    the lock."""
    if not run.decides_again():
        return []
    logger.warning("votes of %s were changed and not decided: deciding again", run.root)
    return redecide(config, run)


def _redecide_round(config: RunConfig, context: RoundContext) -> Redecided:
    folder = context.folder
    before = folder.decisions_before
    was_written = folder.written.exists()
    if not before.folder.exists():
        folder.decisions.folder.rename(before.folder)
    folder.forget_decisions()  # the dataset's files stand until the new ones do
    filter_round(context, config.label, config.filter)
    # Of a round that is not labelled or trained to its end, the rest is still to come.
    if was_written or folder.votes.indices() == folder.prompts.indices():
        write_round(context, test_share=config.write.test_share, unpaired=config.writes_unpaired)
    change = _compare(folder, before, folder.decisions.indices())
    shutil.rmtree(before.folder)
    return change


def _compare(folder: RoundDir, before: ShardFolder, indices: Sequence[int]) -> Redecided:
    counts = dict.fromkeys(("kept_before", "kept", "added", "removed", "turned"), 0)
    for index in indices:
        if not before.exists(index):
            continue
        old, new = before.read(index, _COMPARED), folder.decisions.read(index, _COMPARED)
        assert old["pair_id"].equals(new["pair_id"])
        was, now = old["kept"].to_numpy(), new["kept"].to_numpy()
        moved = pc.not_equal(old["chosen_id"], new["chosen_id"]).to_numpy()
        found = {
            "kept_before": was,
            "kept": now,
            "added": now & ~was,
            "removed": was & ~now,
            "turned": was & now & moved,
        }
        for name, mask in found.items():
            counts[name] += int(mask.sum())
    return Redecided(round=folder.index, trained=folder.policy.exists(), **counts)
