"""One pass over decisions and votes: the distributions that the report shows.

Shards are read one at a time and only in the columns needed; what is kept are counts (one for
each token length, bin, labeler and pair of labelers), so memory does not grow with the run.
"""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import dataclass, field
from itertools import combinations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from prefloop.data.arrays import Bools, Floats, Ints
from prefloop.labelers.decisions.lengths import LENGTH_COLUMNS, compared_lengths
from prefloop.labelers.decisions.reasons import UNDECIDED
from prefloop.labelers.jury.first_shown import first_shown_share
from prefloop.labelers.jury.verdict_table import (
    VERDICT_COLUMNS,
    PositionBias,
    merge_votes,
    position_bias,
    prompts_of,
    read_votes_and_pairs,
)
from prefloop.labelers.statistics.agreement import both_ways, kappa_of_tables
from prefloop.pipeline.report.excerpts import LOT_COLUMNS, PairLots, with_parts
from prefloop.pipeline.run.run_dir import RunDir

Counts = NDArray[np.int64]

MARGIN_EDGES = np.linspace(-1, 1, 41)
AGREEMENT_EDGES = np.linspace(0, 1, 11)

_DECISION_COLUMNS = [
    "margin", "agreement", *LENGTH_COLUMNS, "kept", "reason",
]  # fmt: skip
_VOTE_COLUMNS = [
    *VERDICT_COLUMNS, "prompt_tokens", "completion_tokens", "cost", "criteria",
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
        self += _Lengths.of(decisions).counts(np.ones(len(decisions), np.bool_))

    def __iadd__(self, other: LengthCounts) -> LengthCounts:
        self.chosen = _plus(self.chosen, other.chosen)
        self.rejected = _plus(self.rejected, other.rejected)
        self.chosen_longer += other.chosen_longer
        self.rejected_longer += other.rejected_longer
        self.same += other.same
        return self

    @property
    def pairs(self) -> int:
        """Pairs counted."""
        return self.chosen_longer + self.rejected_longer + self.same

    @property
    def share_chosen_longer(self) -> float | None:
        """Share among the pairs of unequal length; null where there is none."""
        unequal = self.chosen_longer + self.rejected_longer
        return self.chosen_longer / unequal if unequal else None


@dataclass(frozen=True)
class _Lengths:
    """Lengths of the answers of pairs."""

    chosen_tokens: Ints
    rejected_tokens: Ints
    longer: Ints
    """1 where the chosen one is the longer one, -1 where the other is, 0 for equal lengths."""

    @classmethod
    def of(cls, decisions: pa.Table) -> _Lengths:
        chosen, rejected = compared_lengths(decisions)
        longer = np.sign(chosen - rejected)
        return cls(
            decisions["chosen_tokens"].to_numpy(), decisions["rejected_tokens"].to_numpy(), longer
        )

    def counts(self, rows: Bools) -> LengthCounts:
        """Those of some of the pairs."""
        rejected_longer, same, chosen_longer = np.bincount(self.longer[rows] + 1, minlength=3)
        return LengthCounts(
            np.bincount(self.chosen_tokens[rows]),
            np.bincount(self.rejected_tokens[rows]),
            int(chosen_longer),
            int(rejected_longer),
            int(same),
        )


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
        agreement = _Bins.of(column["agreement"], AGREEMENT_EDGES)
        self.agreement_before += agreement.counts()
        self.agreement_after += agreement.counts(kept)
        margins = _Bins.of(column["margin"], MARGIN_EDGES)
        self.margins_before += margins.counts(decided)
        self.margins_after += margins.counts(kept)
        lengths = _Lengths.of(decisions)
        self.before += lengths.counts(decided)
        self.after += lengths.counts(kept)

    def __iadd__(self, other: DecisionTally) -> DecisionTally:
        self.before += other.before
        self.after += other.after
        self.margins_before += other.margins_before
        self.margins_after += other.margins_after
        self.agreement_before += other.agreement_before
        self.agreement_after += other.agreement_after
        self.undecided += other.undecided
        return self


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
    has_criteria: bool = False
    """Whether any vote says what it holds of single criteria."""

    def add(self, votes: pa.Table) -> None:
        """Count a shard of votes. All votes on a pair must be in it."""
        self.has_criteria |= votes["criteria"].null_count < len(votes)
        read, pairs = read_votes_and_pairs(votes)
        verdicts = merge_votes(read, len(pairs))
        labeler = read.labeler
        prompt, completion = (
            np.bincount(labeler, votes[name].to_numpy(), len(read.labelers)).astype(np.int64)
            for name in ("prompt_tokens", "completion_tokens")
        )
        for place, (name, said) in enumerate(read.said().items()):
            tally = self.labelers[name]
            tally.votes += sum(said.values())
            tally.invalid += said["invalid"]
            tally.ties += said["tie"]
            tally.prompt_tokens += int(prompt[place])
            tally.completion_tokens += int(completion[place])
            own = votes["cost"].filter(pa.array(labeler == place))
            tally.cost += pc.sum(own).as_py()
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


def tally_run(run: RunDir, lots: PairLots | None = None) -> RunTally:
    """Count the decisions and votes of every round begun so far. ``lots`` are drawn of the same
    decisions, so that these are read once for both."""
    tally = RunTally()
    columns = dict.fromkeys([*_DECISION_COLUMNS, *(LOT_COLUMNS if lots else [])])
    for folder in run.rounds():
        of_round = tally.rounds[folder.index] = DecisionTally()
        for table in with_parts(folder.decisions, list(columns)):
            of_round.add(table)
            if lots:
                lots.add(table, folder.index)
        tally.decisions += of_round
        for table in folder.votes.batches(_VOTE_COLUMNS):
            tally.votes.add(table)
    return tally


@dataclass(frozen=True)
class _Bins:
    """In which bin of a histogram each of some values falls."""

    place: Ints
    """From 0; ``bins`` for a value in none."""
    bins: int

    @classmethod
    def of(cls, values: Floats, edges: Floats) -> _Bins:
        """Bins hold their lower edge, the last one its upper edge too."""
        # Rounded, so that 0.30000000000000004 falls in the bin that begins at 0.3.
        values, edges, bins = np.round(values, 9), np.round(edges, 9), len(edges) - 1
        place = np.searchsorted(edges, values, side="right") - 1
        place[values == edges[-1]] = bins - 1
        place[place < 0] = bins
        return cls(place, bins)

    def counts(self, rows: Bools | None = None) -> Counts:
        """How many values, or how many of those in ``rows``, are in each bin."""
        place = self.place if rows is None else self.place[rows]
        return np.bincount(place, minlength=self.bins + 1)[: self.bins]


def _plus(one: Counts, other: Counts) -> Counts:
    longer, shorter = (one, other) if len(one) >= len(other) else (other, one)
    total = longer.astype(np.int64)
    total[: len(shorter)] += shorter
    return total
