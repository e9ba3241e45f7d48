"""How far the labelers of a run agree with the labels that its data came with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prefloop.data.arrays import Ints
from prefloop.labelers.jury.verdict_table import (
    VOTE_COLUMNS,
    merge_votes,
    pairs_of,
    read_votes,
)
from prefloop.labelers.statistics.agreement import (
    MISSING,
    Agreement,
    Ratings,
    cohen_kappa,
    raw_agreement,
)
from prefloop.pipeline.run.run_dir import RunDir

_LABELS = ("a", "tie", "b")


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
    codes, prompts = _codes(run)
    found = []
    for name in given:
        for other in sorted(codes.keys() - set(given)):
            both = np.stack([codes[name], codes[other]], axis=1) if name in codes else None
            if both is None:
                continue
            judged = (both != MISSING).all(axis=1)
            both = both[judged]
            ratings = Ratings((name, other), _LABELS, both, prompts=prompts[judged])
            if len(both):
                same, kappa = raw_agreement(ratings), cohen_kappa(ratings, 0, 1)
                found.append(WithGiven(other, name, same, kappa))
    return found


def _codes(run: RunDir) -> tuple[dict[str, Ints], NDArray[np.str_]]:
    """Each labeler's verdicts on all pairs with votes, places in ``_LABELS`` or MISSING, and the
    pairs' prompts."""
    prompts: list[str] = []
    parts: list[tuple[tuple[str, ...], Ints]] = []
    for folder in run.rounds():
        for votes in folder.votes.batches(VOTE_COLUMNS):
            pairs = pairs_of(votes)
            read = read_votes(votes, pairs)
            verdicts = merge_votes(read, len(pairs))
            parts.append((read.labelers, np.where(verdicts.valid, 1 - verdicts.verdict, MISSING)))
            prompts += pairs["prompt_id"].to_pylist()
    names = {name for part, _ in parts for name in part}
    whole = {
        name: np.full(sum(len(codes) for _, codes in parts), MISSING, np.int64) for name in names
    }
    at = 0
    for part, codes in parts:
        for column, name in enumerate(part):
            whole[name][at : at + len(codes)] = codes[:, column]
        at += len(codes)
    return whole, np.array(prompts, "U")


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
    interval = "" if found.low is None else f" [{found.low:.3f}, {found.high:.3f}]"
    return f"{found.value:.3f}{interval}"
