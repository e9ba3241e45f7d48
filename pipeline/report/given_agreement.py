"""How far the labelers of a run agree with the labels that its data came with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from prefloop.labelers.jury.every_verdict import VERDICTS, every_verdict
from prefloop.labelers.jury.verdict_table import VERDICT_COLUMNS
from prefloop.labelers.statistics.agreement import (
    MISSING,
    Agreement,
    Ratings,
    cohen_kappa,
    raw_agreement,
)
from prefloop.pipeline.run.run_dir import RunDir


@dataclass(frozen=True)
class WithGiven:
    """One labeler against the labels of the data, on the pairs that both have a verdict on."""

    labeler: str
    given: str
    same: Agreement
    """Share of equal verdicts, ties among them."""
    kappa: Agreement

    def __str__(self) -> str:
        kappa = "" if self.kappa.value is None else f"; kappa {_with_interval(self.kappa)}"
        return (
            f"{self.labeler} agrees with {self.given} on {_with_interval(self.same)} of "
            f"{self.same.n:,} pairs{kappa}"
        )


def agreement_with_given(run: RunDir) -> list[WithGiven]:
    """Of each labeler that voted on a pair with a label; none where no labels were given."""
    given = _given_names(run)
    if not given:
        return []
    said = every_verdict(
        votes for folder in run.rounds() for votes in folder.votes.batches(VERDICT_COLUMNS)
    )
    found = []
    for name in given:
        for other in said.labelers:
            if name not in said.labelers or other in given:
                continue
            both = said.codes[:, [said.labelers.index(name), said.labelers.index(other)]]
            judged = (both != MISSING).all(axis=1)
            both = both[judged]
            ratings = Ratings((name, other), VERDICTS, both, prompts=said.prompts[judged])
            if len(both):
                same, kappa = raw_agreement(ratings), cohen_kappa(ratings, 0, 1)
                found.append(WithGiven(other, name, same, kappa))
    return found


def _given_names(run: RunDir) -> list[str]:
    """The labelers of type given in the run's config, which may be of another version."""
    if not run.given_counts.exists() or not run.config.exists():
        return []
    label = run.read_config().get("label")
    labelers: Any = label.get("labelers") if isinstance(label, Mapping) else None
    return [
        str(one.get("name", "given"))
        for one in labelers or ()
        if isinstance(one, Mapping) and one.get("type") == "given"
    ]


def _with_interval(found: Agreement) -> str:
    interval = "" if found.low is None else f" [{found.low:z.3f}, {found.high:z.3f}]"
    return f"{found.value:z.3f}{interval}"
