"""How far a judge with a rubric and people agree, criterion by criterion, from votes."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from itertools import combinations
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from prefloop.labelers.judges.rubric.deciding import DIFFERENT
from prefloop.labelers.people import is_human, of_people
from prefloop.labelers.statistics.estimate import Estimate
from prefloop.labelers.statistics.winrate import win_rate

_Asked = tuple[str, tuple[str, ...]]
"""A criterion as it is asked: its text and its choices. Names, weights and vetoes may change."""
_ROUNDING = 1e-9


@dataclass(frozen=True)
class CriterionWithPeople:
    """A criterion of a judge, beside what people say of the same answers. Each answer of a person
    counts once; intervals are by prompt."""

    labeler: str
    name: str
    """Its name, or its text where it has none."""
    choices: tuple[str, ...]
    same: Estimate
    """Answers of which the judge's choice, the nearest one to its value, is the person's; half
    where it stands between two and one of them is."""
    apart: Estimate | None
    """Pairs that a person tells apart by it, of which the judge prefers the same answer by it;
    where the judge tells them apart by less than ``DIFFERENT``, half."""
    people: Estimate | None
    """Answers of which two people chose the same: more cannot be asked of a judge."""
    mean_judge: float
    """Mean place on the way from the first choice, 0, to the last, 1."""
    mean_people: float

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return asdict(self)


@dataclass
class _Tally:
    """What was seen of a criterion, with the prompts."""

    name: str = ""
    same: list[tuple[float, str]] = field(default_factory=list)
    apart: list[tuple[float, str]] = field(default_factory=list)
    judge: list[float] = field(default_factory=list)
    people: list[float] = field(default_factory=list)


def criteria_with_people(votes: Iterable[pa.Table]) -> list[CriterionWithPeople]:
    """The criteria that a judge and people both judged, labeler by labeler, those on which they
    agree least first, from tables of votes (``deciding.CRITERIA_COLUMNS``); all votes on a pair
    have to be in one table."""
    tallies: dict[tuple[str, _Asked], _Tally] = defaultdict(_Tally)
    among: dict[_Asked, list[tuple[float, str]]] = defaultdict(list)
    for table in votes:
        by_pair: dict[str, list[dict[str, Any]]] = defaultdict(list)
        for row in _where_people_spoke(table).to_pylist():
            by_pair[row["pair_id"]].append(row)
        for rows in by_pair.values():
            people = [_Said.of(row) for row in rows if is_human(row["labeler"])]
            for one, other in combinations(people, 2):
                if one.labeler != other.labeler:
                    _compare_people(one, other, among)
            for row in rows if people else ():
                judge = None if is_human(row["labeler"]) else _Said.of(row)
                for person in people if judge else ():
                    assert judge is not None
                    _compare(judge, person, tallies)
    found = [
        CriterionWithPeople(
            labeler=labeler,
            name=tally.name,
            choices=asked[1],
            same=_estimate(tally.same),
            apart=_estimate(tally.apart) if tally.apart else None,
            people=_estimate(among[asked]) if asked in among else None,
            mean_judge=sum(tally.judge) / len(tally.judge),
            mean_people=sum(tally.people) / len(tally.people),
        )
        for (labeler, asked), tally in tallies.items()
    ]
    return sorted(found, key=lambda one: (one.labeler, one.same.value, one.name))


def _where_people_spoke(votes: pa.Table) -> pa.Table:
    """The votes with criteria on pairs of which people judged some."""
    told = votes.filter(pc.is_valid(votes["criteria"]))
    return told.filter(pc.is_in(told["pair_id"], pc.unique(of_people(told)["pair_id"])))


@dataclass(frozen=True)
class _Said:
    """What one labeler said of a pair's answers, by criterion."""

    labeler: str
    prompt_id: str
    names: Mapping[_Asked, str]
    places: Mapping[_Asked, Mapping[str, float]]
    """By candidate id: on the way from the first choice to the last, faults not reversed."""

    @classmethod
    def of(cls, row: Mapping[str, Any]) -> _Said:
        """What a vote says. A judge's criteria of single prompts are asked of nobody else."""
        told = json.loads(row["criteria"])
        names, places = {}, {}
        for one in told["criteria"] if told["from"] in ("judge", "people") else ():
            asked = (one["text"], tuple(one["choices"]))
            names[asked] = one["name"] or " ".join(one["text"].split())
            places[asked] = {
                row[f"{side}_id"]: 1 - one[side] if one["weight"] < 0 else one[side]
                for side in ("a", "b")
                if one[side] is not None
            }
        return cls(row["labeler"], row["prompt_id"], names, places)


def _compare(judge: _Said, person: _Said, tallies: dict[tuple[str, _Asked], _Tally]) -> None:
    for asked, at in _common(judge, person):
        tally = tallies[judge.labeler, asked]
        tally.name = judge.names[asked]
        for judged, said in at.values():
            tally.same.append((_is_same(judged, said, len(asked[1])), judge.prompt_id))
            tally.judge.append(judged)
            tally.people.append(said)
        if len(at) < 2:
            continue
        (first, said_first), (second, said_second) = at.values()
        if abs(said_first - said_second) < _ROUNDING:
            continue
        gap = first - second
        alike = (gap > 0) == (said_first > said_second)
        tally.apart.append((0.5 if abs(gap) < DIFFERENT else float(alike), judge.prompt_id))


def _compare_people(one: _Said, other: _Said, among: dict[_Asked, list[tuple[float, str]]]) -> None:
    for asked, at in _common(one, other):
        among[asked] += [
            (float(abs(first - second) < _ROUNDING), one.prompt_id) for first, second in at.values()
        ]


def _common(one: _Said, other: _Said) -> Iterator[tuple[_Asked, dict[str, tuple[float, float]]]]:
    """Where both stand, by candidate, for each criterion that both speak of."""
    for asked, places in one.places.items():
        others = other.places.get(asked, {})
        at = {key: (places[key], others[key]) for key in places if key in others}
        if at:
            yield asked, at


def _is_same(judged: float, said: float, choices: int) -> float:
    """Whether the choice nearest to what was judged is the one that was said."""
    steps = abs(judged - said) * (choices - 1)
    if abs(steps - 0.5) < _ROUNDING:
        return 0.5
    return float(steps < 0.5)


def _estimate(seen: list[tuple[float, str]]) -> Estimate:
    return win_rate([value for value, _ in seen], [prompt for _, prompt in seen])
