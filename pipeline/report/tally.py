"""One pass over decisions and votes: the distributions that the report shows.

Shards are read one at a time and only in the columns needed; what is kept are counts (one for
each token length, bin, labeler and pair of labelers), so memory does not grow with the run.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from itertools import combinations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from prefloop.labelers.decisions.decide import NO_VALID_VOTE, TIE
from prefloop.labelers.decisions.lengths import LENGTH_COLUMNS, compared_lengths
from prefloop.labelers.jury.first_shown import first_shown_share
from prefloop.labelers.jury.verdict_table import (
    VOTE_COLUMNS,
    PositionBias,
    merge_votes,
    pairs_of,
    position_bias,
    prompts_of,
    read_votes,
)
from prefloop.labelers.statistics.agreement import both_ways, kappa_of_tables
from prefloop.pipeline.run.run_dir import RunDir

Counts = NDArray[np.int64]

UNDECIDED = (TIE, NO_VALID_VOTE)
"""Reasons of the pairs that have no preferred answer."""
MARGIN_EDGES = np.linspace(-1, 1, 41)
AGREEMENT_EDGES = np.linspace(0, 1, 11)

_DECISION_COLUMNS = [
    "margin", "agreement", *LENGTH_COLUMNS, "kept", "reason",
]  # fmt: skip
_VOTE_COLUMNS = [
    *VOTE_COLUMNS, "prompt_tokens", "completion_tokens", "cost",
]  # fmt: skip


@dataclass
class LengthCounts:
    """Lengths of the chosen and the rejected answers of some pairs, in tokens."""

    chosen: Counts = field(default_factory=lambda: np.zeros(0, np.int64))
    """How many chosen answers have 0, 1, 2, ... tokens."""
    rejected: Counts = field(default_factory=lambda: np.zeros(0, np.int64))
    chosen_longer: int = 0
    rejected_longer: int = 0
    same: int = 0

    def add(self, decisions: pa.Table) -> None:
        """Count these pairs; which answer is the longer one may be a matter of characters."""
        tokens = (decisions[name].to_numpy() for name in ("chosen_tokens", "rejected_tokens"))
        self.chosen, self.rejected = (
            _plus(so_far, np.bincount(these))
            for so_far, these in zip((self.chosen, self.rejected), tokens, strict=True)
        )
        chosen, rejected = compared_lengths(decisions)
        self.chosen_longer += int((chosen > rejected).sum())
        self.rejected_longer += int((chosen < rejected).sum())
        self.same += int((chosen == rejected).sum())

    @property
    def pairs(self) -> int:
        """Pairs counted."""
        return self.chosen_longer + self.rejected_longer + self.same

    @property
    def share_chosen_longer(self) -> float | None:
        """Share among the pairs of unequal length; null where there is none."""
        unequal = self.chosen_longer + self.rejected_longer
        return self.chosen_longer / unequal if unequal else None


@dataclass
class DecisionTally:
    """Distributions over decided pairs. A pair without a preference has no chosen answer and is
    counted in ``undecided`` (and in the agreement) only."""

    before: LengthCounts = field(default_factory=LengthCounts)
    """Every pair with a preference."""
    after: LengthCounts = field(default_factory=LengthCounts)
    """The pairs that the filters kept."""
    margins_before: Counts = field(
        default_factory=lambda: np.zeros(len(MARGIN_EDGES) - 1, np.int64)
    )
    margins_after: Counts = field(default_factory=lambda: np.zeros(len(MARGIN_EDGES) - 1, np.int64))
    agreement_before: Counts = field(
        default_factory=lambda: np.zeros(len(AGREEMENT_EDGES) - 1, np.int64)
    )
    agreement_after: Counts = field(
        default_factory=lambda: np.zeros(len(AGREEMENT_EDGES) - 1, np.int64)
    )
    undecided: int = 0

    def add(self, decisions: pa.Table) -> None:
        """Count a shard of decisions."""
        names = ("margin", "agreement", "kept")
        column = {name: decisions[name].to_numpy() for name in names}
        kept = column["kept"].astype(bool)
        decided = ~pc.is_in(decisions["reason"], pa.array(UNDECIDED)).to_numpy()
        self.undecided += int((~decided).sum())
        self.agreement_before += _histogram(column["agreement"], AGREEMENT_EDGES)
        self.agreement_after += _histogram(column["agreement"][kept], AGREEMENT_EDGES)
        self.margins_before += _histogram(column["margin"][decided], MARGIN_EDGES)
        self.margins_after += _histogram(column["margin"][kept], MARGIN_EDGES)
        for lengths, rows in ((self.before, decided), (self.after, kept)):
            lengths.add(decisions.filter(pa.array(rows)))


@dataclass
class LabelerTally:
    """What one labeler's votes add up to."""

    votes: int = 0
    invalid: int = 0
    ties: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cost: float = 0.0
    position: PositionBias = field(default_factory=PositionBias)

    @property
    def first_interval(self) -> tuple[float, float]:
        """95 % interval of the share of votes for the answer shown first."""
        found = first_shown_share(self.position)
        return (found.low, found.high) if found else (0.0, 1.0)


@dataclass
class AgreementTally:
    """Verdicts of two labelers on the pairs that both judged: rows the first, columns the second,
    in the order a, tie, b."""

    confusion: Counts = field(default_factory=lambda: np.zeros((3, 3), np.int64))

    @property
    def pairs(self) -> int:
        """Pairs that both judged."""
        return int(self.confusion.sum())

    @property
    def observed(self) -> float:
        """Share of pairs with the same verdict."""
        return float(np.trace(self.confusion)) / self.pairs

    @property
    def kappa(self) -> float | None:
        """Cohen's kappa, each pair counted both ways round; null where both always say tie."""
        kappa = float(kappa_of_tables(both_ways(self.confusion[None].astype(np.float64)))[0])
        return None if math.isnan(kappa) else kappa


@dataclass
class VoteTally:
    """Distributions over votes."""

    labelers: dict[str, LabelerTally] = field(default_factory=lambda: defaultdict(LabelerTally))
    agreements: dict[tuple[str, str], AgreementTally] = field(
        default_factory=lambda: defaultdict(AgreementTally)
    )

    def add(self, votes: pa.Table) -> None:
        """Count a shard of votes. All votes on a pair must be in it."""
        pairs = pairs_of(votes)
        read = read_votes(votes, pairs)
        verdicts = merge_votes(read, len(pairs))
        for name in read.labelers:
            own = votes.filter(pc.equal(votes["labeler"], name))
            said = _counted(own["preference"])
            tally = self.labelers[name]
            tally.votes += len(own)
            tally.invalid += said["invalid"]
            tally.ties += said["tie"]
            tally.prompt_tokens += pc.sum(own["prompt_tokens"]).as_py()
            tally.completion_tokens += pc.sum(own["completion_tokens"]).as_py()
            tally.cost += pc.sum(own["cost"]).as_py()
        for name, bias in position_bias(read, verdicts, prompts_of(pairs)).items():
            self.labelers[name].position += bias
        for one, other in combinations(range(len(read.labelers)), 2):
            both = verdicts.valid[:, one] & verdicts.valid[:, other]
            if not both.any():
                continue
            row, column = (1 - verdicts.verdict[both, index] for index in (one, other))
            confusion = self.agreements[read.labelers[one], read.labelers[other]].confusion
            confusion += np.bincount(3 * row + column, minlength=9).reshape(3, 3)


@dataclass
class RunTally:
    """All distributions of a run."""

    rounds: dict[int, DecisionTally] = field(default_factory=dict)
    decisions: DecisionTally = field(default_factory=DecisionTally)
    """Over all rounds."""
    votes: VoteTally = field(default_factory=VoteTally)


def tally_run(run: RunDir) -> RunTally:
    """Count the decisions and votes of every round begun so far."""
    tally = RunTally()
    for folder in run.rounds():
        of_round = tally.rounds[folder.index] = DecisionTally()
        for table in folder.decisions.batches(_DECISION_COLUMNS):
            of_round.add(table)
            tally.decisions.add(table)
        for table in folder.votes.batches(_VOTE_COLUMNS):
            tally.votes.add(table)
    return tally


def _counted(column: pa.ChunkedArray) -> Counter[str]:
    found = pc.value_counts(column).to_pylist()
    return Counter({one["values"]: one["counts"] for one in found})


def _histogram(values: NDArray[np.float64], edges: NDArray[np.float64]) -> Counts:
    # Rounded, so that 0.30000000000000004 falls in the bin that begins at 0.3.
    return np.histogram(np.round(values, 9), np.round(edges, 9))[0].astype(np.int64)


def _plus(one: Counts, other: Counts) -> Counts:
    longer, shorter = (one, other) if len(one) >= len(other) else (other, one)
    total = longer.astype(np.int64)
    total[: len(shorter)] += shorter
    return total
