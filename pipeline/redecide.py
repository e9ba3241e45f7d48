"""Deciding a run's pairs again after its votes changed, and writing the dataset anew."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import pyarrow.compute as pc

from prefloop.data.schemas import DECISION
from prefloop.data.shards import ShardFolder
from prefloop.pipeline.config import RunConfig
from prefloop.pipeline.report.card import CARD, write_card
from prefloop.pipeline.report.run_page import write_report
from prefloop.pipeline.run.context import RoundContext, RunContext
from prefloop.pipeline.run.run_dir import RoundDir, RunDir
from prefloop.pipeline.stages.filter import filter_round
from prefloop.pipeline.stages.write import split_files, write_round

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
    # The card says what the files hold: where this ends in the middle, it must not say the old.
    (run.dataset / CARD).unlink(missing_ok=True)
    found = [
        _redecide_round(config, context.round(folder.index))
        for folder in run.rounds()
        if folder.decisions.indices() or _before(folder).indices()
    ]
    if found:
        write_card(config, run)
        write_report(run)
    return found


def _redecide_round(config: RunConfig, context: RoundContext) -> Redecided:
    run, folder = context.run, context.folder
    before = _before(folder)
    if before.folder.exists():
        shutil.rmtree(folder.decisions.folder, ignore_errors=True)
    else:
        folder.decisions.folder.rename(before.folder)
    was_written = folder.written.exists()
    folder.written.unlink(missing_ok=True)
    folder.jury.unlink(missing_ok=True)
    shutil.rmtree(folder.triples.folder, ignore_errors=True)
    for split, unpaired in product(("train", "test"), (False, True)):
        for file in split_files(run, split, folder.index, unpaired=unpaired):
            file.unlink()
    filter_round(context, config.label, config.filter)
    if was_written or folder.decisions.indices() == folder.votes.indices():
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


def _before(folder: RoundDir) -> ShardFolder:
    return ShardFolder(folder.root / "decision-before", DECISION)
