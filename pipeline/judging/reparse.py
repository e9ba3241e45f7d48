"""Reading the judges' kept answers of a run again, and deciding by what they say now."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from prefloop.data.schemas import VOTE
from prefloop.data.shards import atomic_write_json
from prefloop.labelers.config import JudgeLabeler
from prefloop.labelers.judges.folder import Judge, judge_revision, load_judge, question_revision
from prefloop.labelers.judges.reread import reread
from prefloop.pipeline.adoption import finish_adoption
from prefloop.pipeline.config import RunConfig, load_config
from prefloop.pipeline.redecide import Redecided, mark_undecided, redecide
from prefloop.pipeline.run.manifest import JUDGE, JUDGE_QUESTION
from prefloop.pipeline.run.round_jury import with_labels_of
from prefloop.pipeline.run.run_dir import RunDir, RunError

Changes = dict[str, Counter[tuple[str, str]]]
"""For each judge, how many votes were read as the first preference, and are now as the second."""


@dataclass(frozen=True)
class Reparsed:
    """What the judges' answers say now that they did not say before."""

    votes: dict[str, int]
    """Votes of each judge that were read again."""
    changes: Changes
    rounds: list[Redecided]
    """What it did to the dataset; empty where nothing was written."""

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {
            "votes": self.votes,
            "changes": {
                name: [
                    {"before": before, "now": now, "votes": number}
                    for (before, now), number in sorted(found.items())
                ]
                for name, found in self.changes.items()
            },
            "rounds": [asdict(each) for each in self.rounds],
        }


def reparse(run: RunDir, *, write: bool) -> Reparsed:
    """Read the answers of a run's judges again, with the judges' folders as they are now.

    Only with ``write`` anything changes on disk: the votes, the decisions, the dataset. Votes in
    the evaluation stay as they are. Raises ``RunError`` where a judge asks otherwise than it did:
    then the answers are to another question, and have to be asked for.
    """
    if write and run.adopting.exists():
        with run.lock():
            finish_adoption(run)
    config = load_config(run.config)
    judges = {
        labeler.name: (labeler.judge, load_judge(labeler.judge))
        for one in (config, *(with_labels_of(config, folder) for folder in run.rounds()))
        for labeler in one.label.labelers
        if isinstance(labeler, JudgeLabeler)
    }
    if not judges:
        raise RunError(f"{run.root} has no judge: there are no answers to read again")
    if not write:
        return _read(run, config, judges, write=False)
    with run.lock():
        _refuse_other_questions(run, [path for path, _ in judges.values()])
        found = _read(run, config, judges, write=True)
        rounds = redecide(config, run)
        _accept(run, [path for path, _ in judges.values()])
    return Reparsed(found.votes, found.changes, rounds)


def _read(
    run: RunDir, config: RunConfig, judges: dict[str, tuple[str, Judge]], *, write: bool
) -> Reparsed:
    votes = dict.fromkeys(judges, 0)
    changes: Changes = {name: Counter() for name in judges}
    for folder in run.rounds():
        for index in folder.votes.indices():
            old = folder.votes.read(index)
            parts = []
            for name, part in _by_labeler(old):
                new = reread(part, judges[name][1], seed=config.seed) if name in judges else part
                parts.append(new)
                if name in judges:
                    votes[name] += len(part)
                    changes[name] += _changed(part, new)
            table = pa.concat_tables([VOTE.empty_table(), *parts])
            if write and not table.equals(old):
                mark_undecided(run)
                folder.votes.replace(index, table)
    return Reparsed(votes, changes, [])


def _by_labeler(votes: pa.Table) -> Iterator[tuple[str, pa.Table]]:
    """The votes of each labeler, in the order in which the labelers occur."""
    for name in pc.unique(votes["labeler"]).to_pylist():
        yield name, votes.filter(pc.equal(votes["labeler"], name))


def _changed(before: pa.Table, now: pa.Table) -> Counter[tuple[str, str]]:
    pairs = zip(before["preference"].to_pylist(), now["preference"].to_pylist(), strict=True)
    return Counter(pair for pair in pairs if pair[0] != pair[1])


def _refuse_other_questions(run: RunDir, judges: list[str]) -> None:
    inputs = json.loads(run.manifest.read_text(encoding="utf-8"))["inputs"]
    for judge in judges:
        before = inputs.get(JUDGE_QUESTION.format(judge))
        if before is not None and before != question_revision(judge):
            raise RunError(
                f"the judge {judge} asks otherwise than it did in {run.root}: its answers there "
                "are to another question; put its template back, or have it asked again: "
                f"`prefloop relabel {run.root} --adopt`"
            )


def _accept(run: RunDir, judges: list[str]) -> None:
    """Let the run go on with the judges as they are now."""
    manifest = json.loads(run.manifest.read_text(encoding="utf-8"))
    manifest["inputs"] |= {JUDGE.format(judge): judge_revision(judge) for judge in judges}
    atomic_write_json(run.manifest, manifest)
