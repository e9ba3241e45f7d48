"""A judge on each group of pairs (`prefloop judge-eval --by`), beside "the longer is better"."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from prefloop.data.errors import InputError
from prefloop.data.preferences.gold import GoldPair
from prefloop.data.utf8 import listed
from prefloop.labelers.statistics.estimate import Estimate
from prefloop.labelers.statistics.groups import GroupFigures, compare_groups
from prefloop.pipeline.judging.figures.best_of_n import best_of_n
from prefloop.pipeline.judging.figures.judged import read_judged, rightness

FILE = "file"
"""The group of pairs by the file that they are from, where no column has this name."""
MOST_GROUPS = 100


@dataclass(frozen=True)
class OfGroup:
    """One judge on one group; ``figures`` have its accuracy as share, and as baseline what a judge
    would reach who always takes the longer answer."""

    figures: GroupFigures
    best_of_n: Estimate | None
    """Of the rows with lists of answers, where there are any."""

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        one = self.figures
        return {
            "group": one.group,
            "pairs": one.share.n,
            "accuracy": asdict(one.share),
            "longer": asdict(one.baseline),
            "difference": asdict(one.difference),
            "p": one.p,
            "p_holm": one.p_holm,
            "best_of_n": self.best_of_n and asdict(self.best_of_n),
        }


@dataclass(frozen=True)
class ByGroup:
    """One judge on the groups of one column."""

    judge: str
    by: str
    groups: tuple[OfGroup, ...]

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        groups = [one.as_dict() for one in self.groups]
        return {"judge": self.judge, "by": self.by, "groups": groups}


def groups_of(by: str, gold: Sequence[GoldPair], source: str) -> list[str]:
    """The group of each pair: what the column ``by`` of its row says, as text.

    Raises ``InputError`` for a column that no row has, and one with more than ``MOST_GROUPS``.
    """
    columns = dict.fromkeys(name for pair in gold for name in pair.metadata)
    if by in columns:
        found = [_text(pair.metadata.get(by)) for pair in gold]
    elif by == FILE:
        found = [pair.source for pair in gold]
    else:
        raise InputError(
            f"--by {by}: {source} has no such column beside prompt, answers and label: there are "
            f"{listed([*columns, FILE])}"
        )
    count = len(set(found))
    if count > MOST_GROUPS:
        raise InputError(
            f"--by {by}: {count:,} groups, and at most {MOST_GROUPS} can be told apart: take a "
            "column with fewer values"
        )
    return found


def _text(value: Any) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, float) and value.is_integer():
        value = int(value)  # a table has 1.0 where another row has no number
    return json.dumps(value, ensure_ascii=False, default=str, sort_keys=True)


def by_group(
    judge: str, votes: pa.Table, gold: Sequence[GoldPair], by: str, groups: Sequence[str]
) -> ByGroup:
    """The ``groups`` [P] of the pairs ``gold`` as ``judge`` does on them by its ``votes``; those
    without a pair that has a verdict and a decided gold label are not there."""
    judged = read_judged(votes, gold)
    rows = judged.rows
    of_each = np.array(groups, dtype=object)
    longer = rightness(judged.longer, judged.truth)
    figures = compare_groups(
        judged.right[rows], longer[rows], of_each[rows].tolist(), judged.prompts[rows]
    )
    found = []
    for one in sorted(figures, key=lambda one: one.group):
        lists = best_of_n(judged, gold, of_each == one.group)
        found.append(OfGroup(one, lists.share if lists else None))
    return ByGroup(judge, by, tuple(found))
