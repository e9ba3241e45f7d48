"""``report.html``: one self-contained page about a run, written at any point of it.

The page loads nothing: style sheet and plots are inline, there is no script. Everything that
comes out of a model, a prompt file or a config is untrusted and goes through the template's
escaping; keys and passwords are taken out on the way.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from prefloop.data.shards import atomic_write_text, row_count
from prefloop.labelers.decisions.reasons import PAIR_STRATEGY
from prefloop.labelers.judges.rubric.deciding import (
    CRITERIA_COLUMNS,
    DIFFERENT,
    criteria_figures,
)
from prefloop.labelers.judges.rubric.with_people import criteria_with_people
from prefloop.labelers.people import is_human
from prefloop.pipeline.report.excerpts import PairLots, read_excerpts
from prefloop.pipeline.report.figures import (
    coverage,
    curve_figures,
    guard_captions,
    policy_figures,
    read_metrics,
    win_figures,
)
from prefloop.pipeline.report.other_labels import read_other_labels
from prefloop.pipeline.report.pages import render_page
from prefloop.pipeline.report.pair_figures import decision_figures, length_figures, length_shares
from prefloop.pipeline.report.provenance import (
    quarantine_examples,
    shown_config,
    shown_manifest,
    training_facts,
)
from prefloop.pipeline.report.redact import hide_environment_secrets
from prefloop.pipeline.report.side_by_side import read_side_by_side
from prefloop.pipeline.report.tally import tally_run
from prefloop.pipeline.run.run_dir import JURY, RunDir
from prefloop.pipeline.run.shard_counts import WinRate
from prefloop.pipeline.run.status import RoundStatus, RunStatus, collect_status
from prefloop.pipeline.stages.dataset.layout import TRIPLES_FOLDER, files_in

if TYPE_CHECKING:
    import pyarrow as pa

LONGEST_TEXT = 3_000
"""Characters of a prompt or an answer that are shown; the rest is counted."""


MOST_CRITERIA = 30
"""Criteria of a labeler that have a line of their own."""
MOST_SOURCES = 24
"""Sources of prompts that have a line of their own."""


@dataclass(frozen=True)
class Dataset:
    """What the run is for, as far as it is written."""

    path: str
    rows: dict[str, int]
    """By split."""
    size: int
    """Bytes on disk."""


def write_report(run: RunDir) -> Path:
    """Write the report of ``run`` and return its path. An older report is replaced at once."""
    atomic_write_text(run.report, render_report(run))
    return run.report


def render_report(run: RunDir) -> str:
    """The report of ``run`` as HTML. Equal runs give equal pages."""
    status = collect_status(run)
    lots = PairLots()
    tally = tally_run(run, lots)
    metrics = read_metrics(run)
    kept, dropped = read_excerpts(run, lots)
    not_chosen = dropped.pop(PAIR_STRATEGY, [])
    notes = run.notes()
    guards = guard_captions(run) if metrics else {}
    won = _won(status)
    led = _led(status, won)
    flows = [_flow(each) for each in status.rounds]

    def criteria() -> Iterator[pa.Table]:
        for folder in run.rounds() if tally.votes.has_criteria else ():
            yield from folder.votes.batches(CRITERIA_COLUMNS)

    page = render_page(
        "report.html.jinja",
        name=run.root.resolve().name,
        status=status,
        as_of=notes[-1].get("at") if notes else None,
        dataset=_dataset(run),
        won=won,
        led=led,
        controlled=led.length_controlled if led else None,
        flows=flows,
        labelers_differ=len({flow.labelled_by for flow in flows if flow.labelled_by}) > 1,
        win_figures=win_figures(metrics, coverage(run)),
        policy_figures=policy_figures(metrics, guards),
        curve_figures=curve_figures(metrics, guards),
        training=training_facts(notes),
        length_figures=length_figures(tally),
        length_shares=length_shares(tally),
        decision_figures=decision_figures(tally),
        tally=tally,
        rubrics=criteria_figures(criteria()),
        by_people=criteria_with_people(criteria()),
        most_criteria=MOST_CRITERIA,
        different=DIFFERENT,
        other_labels=read_other_labels(run),
        side_by_side=read_side_by_side(run),
        kept=kept,
        dropped=dropped,
        not_chosen=not_chosen,
        longest=LONGEST_TEXT,
        most_sources=MOST_SOURCES,
        config=shown_config(run),
        manifest=shown_manifest(run),
        quarantine=quarantine_examples(run),
    )
    return hide_environment_secrets(page)


def _dataset(run: RunDir) -> Dataset | None:
    rows: dict[str, int] = {"train": 0, "test": 0}
    for split in rows:
        rows[split] = sum(map(row_count, files_in(run.dataset, TRIPLES_FOLDER, split)))
    files = sorted(run.dataset.rglob("*.parquet"))
    if not files:
        return None
    return Dataset(str(run.dataset.resolve()), rows, sum(path.stat().st_size for path in files))


def _won(status: RunStatus) -> list[tuple[int, WinRate]]:
    """Each round's policy against the starting one, as the jury sees it."""
    return [
        (each.round, rate)
        for each in status.rounds
        for rate in each.win_rates
        if rate.labeler == JURY and rate.against == "start"
    ]


def _led(status: RunStatus, won: list[tuple[int, WinRate]]) -> WinRate | None:
    """The figure that leads: of the policy to keep, or of the last one where none is."""
    kept = status.keep.round if status.keep else None
    return next((rate for index, rate in won if index == kept), won[-1][1] if won else None)


@dataclass(frozen=True)
class Segment:
    """A part of a round's pairs."""

    name: str
    style: str
    """Of its colour, in the style sheet."""
    pairs: int
    share: float
    """Of all pairs."""


@dataclass(frozen=True)
class Flow:
    """The counts of a round as the page shows them."""

    status: RoundStatus
    segments: tuple[Segment, ...]
    """Kept, not chosen by the pair strategy (if any), and each reason for dropping."""
    labelled_by: tuple[str, ...]
    """The labelers that voted, people left out."""
    compared_by: tuple[str, ...]
    """Those that compared the round's policy with others."""


def _flow(status: RoundStatus) -> Flow:
    fates = [("kept", "0", status.kept)]
    if status.not_chosen:
        fates.append(("not chosen by the pair strategy", "left", status.not_chosen))
    dropped = enumerate(status.filtered_out.items(), 1)
    fates += [(reason, str(min(place, 4)), pairs) for place, (reason, pairs) in dropped]
    total = max(status.pairs, 1)
    labelers = {name for name in status.votes if not is_human(name)}
    judges = {rate.labeler for rate in status.win_rates if rate.labeler != JURY}
    return Flow(
        status=status,
        segments=tuple(Segment(*fate, fate[-1] / total) for fate in fates),
        labelled_by=tuple(sorted(labelers)),
        compared_by=tuple(sorted(judges)),
    )
