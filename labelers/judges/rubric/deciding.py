"""Which criteria of a rubric decide, which never vary, and on which people disagree, from votes."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from prefloop.labelers.people import of_people, without_people

CRITERIA_COLUMNS = ["pair_id", "prompt_id", "a_id", "b_id", "labeler", "preference", "criteria"]
"""The columns of votes that are looked at."""
DIFFERENT = 0.05
"""Values of two answers that differ by less are taken as the same."""
_ROUNDING = 1e-9


@dataclass
class CriterionFigures:
    """What one criterion did in the votes of a labeler. A pair counts where both answers have a
    value of it."""

    name: str
    """Its name, or its text where it has none."""
    weight: float
    veto: bool
    pairs: int = 0
    differs: int = 0
    """Pairs whose two answers it tells apart."""
    decides: int = 0
    """Pairs whose verdict would be another, or none, without it."""
    margin: float = 0.0
    """By how much it moved the weighted sums towards the verdicts, over all pairs that no veto
    decided; negative where it mostly stood against them."""
    agrees: int = 0
    """Of the pairs that it tells apart, those in which it prefers the answer that won."""
    failed: int = 0
    """Answers, in pairs, that fail it, where it is a veto."""
    by_people: int = 0
    """Of the pairs that it tells apart, those on which people prefer one answer."""
    with_people: int = 0
    """Of these, the pairs in which it prefers the answer that people do."""
    total: float = 0.0
    """Sum of its values."""

    @property
    def mean(self) -> float:
        """Mean of its values over the answers of all pairs."""
        return self.total / (2 * self.pairs) if self.pairs else 0.0

    @property
    def is_idle(self) -> bool:
        """Whether it tells no two answers apart."""
        return self.differs == 0


@dataclass
class RubricFigures:
    """The criteria of one labeler's votes, those that decide most pairs first."""

    labeler: str
    from_prompts: bool
    """Each prompt has criteria of its own."""
    criteria: list[CriterionFigures] = field(default_factory=list)

    @property
    def idle(self) -> int:
        """Criteria that tell no two answers apart."""
        return sum(one.is_idle for one in self.criteria)

    @property
    def deciding(self) -> int:
        """Criteria that decide at least one pair."""
        return sum(one.decides > 0 for one in self.criteria)

    def share(self, criterion: CriterionFigures) -> float | None:
        """The part of the margins of all verdicts that is this criterion's; null where there is
        none."""
        total = sum(one.margin for one in self.criteria)
        return criterion.margin / total if total > 0 else None

    @property
    def people(self) -> bool:
        """Whether people voted on pairs that a criterion tells apart."""
        return any(one.by_people for one in self.criteria)


def criteria_figures(votes: Iterable[pa.Table]) -> list[RubricFigures]:
    """The figures of each labeler with a rubric, from tables of votes (CRITERIA_COLUMNS); all votes
    on a pair have to be in one table.

    The verdict that a criterion is compared with is the one by the values: by the failed vetoes,
    and where they are equal by the weighted sum.
    """
    found: dict[str, dict[tuple[str, str], CriterionFigures]] = defaultdict(dict)
    from_prompts: dict[str, bool] = {}
    for table in votes:
        asked = without_people(table.filter(pc.is_valid(table["criteria"])))
        if not len(asked):
            continue
        people = _by_people(table)
        for row in asked.to_pylist():
            told = json.loads(row["criteria"])
            own = told["from"] != "judge"
            from_prompts[row["labeler"]] = own
            # Two prompts may use the same words for different things.
            scope = row["prompt_id"] if own else ""
            preferred = people.get(row["pair_id"])
            by_people = 0 if preferred is None else 1 if preferred == row["a_id"] else -1
            _count(found[row["labeler"]], scope, told["criteria"], by_people)
    return [
        RubricFigures(
            labeler,
            from_prompts[labeler],
            sorted(criteria.values(), key=lambda one: (-one.decides, -one.margin, one.name)),
        )
        for labeler, criteria in sorted(found.items())
    ]


def _count(
    figures: dict[tuple[str, str], CriterionFigures],
    scope: str,
    told: Sequence[Mapping[str, Any]],
    by_people: int,
) -> None:
    """Add one vote; ``by_people``: 1 where people prefer a, -1 for b, 0 where nobody said."""
    if any(one["a"] is None or one["b"] is None for one in told):
        return
    gaps = np.array([abs(one["weight"]) * (one["a"] - one["b"]) for one in told])
    fails = np.array([[bool(one.get(f"{name}_fails")) for name in ("a", "b")] for one in told])
    verdict = _verdict(gaps, fails)
    vetoed = np.any(fails, axis=0).tolist()
    by_veto = vetoed[0] != vetoed[1]
    for place, one in enumerate(told):
        name = one["name"] or " ".join(one["text"].split())
        entry = figures.setdefault(
            (scope, one["text"]), CriterionFigures(name, one["weight"], one["veto"])
        )
        entry.pairs += 1
        entry.total += one["a"] + one["b"]
        entry.failed += int(fails[place].sum())
        others = np.arange(len(told)) != place
        entry.margin += 0.0 if by_veto else verdict * float(gaps[place])
        entry.decides += int(verdict != 0 and _verdict(gaps[others], fails[others]) != verdict)
        if abs(one["a"] - one["b"]) < DIFFERENT:
            continue
        prefers = 1 if one["a"] > one["b"] else -1
        entry.differs += 1
        entry.agrees += int(prefers == verdict)
        entry.by_people += int(by_people != 0)
        entry.with_people += int(prefers == by_people)


def _verdict(gaps: Any, fails: Any) -> int:
    """1 where a wins, -1 where b does, 0 for a tie."""
    of_a, of_b = fails.any(axis=0) if len(fails) else (False, False)
    if of_a != of_b:
        return -1 if of_a else 1
    total = float(gaps.sum())
    return 0 if abs(total) < _ROUNDING else 1 if total > 0 else -1


def _by_people(votes: pa.Table) -> dict[str, str]:
    """The answer of each pair that more people prefer than the other one, by its id."""
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for row in of_people(votes).to_pylist():
        if row["preference"] in ("a", "b"):
            counts[row["pair_id"]][row[f"{row['preference']}_id"]] += 1
    found = {}
    for pair, of_pair in counts.items():
        (first, most), *rest = of_pair.most_common()
        if not rest or rest[0][1] < most:
            found[pair] = first
    return found
